"""`esteira tick`: looks at every line's rollout, once or again and again; one leader at a time."""

import logging
import time
from typing import TYPE_CHECKING, Any

import click

from esteira.cli import emit, say, show

if TYPE_CHECKING:
    from esteira.registry import Registry
    from esteira.rollout.state import Decision
    from esteira.settings import Settings

_TIDY_SECONDS = 3600.0

_log = logging.getLogger("esteira.tick")


@click.command()
@click.option(
    "--every", type=click.FloatRange(1, 86_400), metavar="SECONDS",
    help="Go on until told to stop (Ctrl-C, TERM), a look every so many seconds; 60 keeps H-44, 300 is the most of H-50.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a look.")
def tick(every: float | None, as_json: bool) -> int:
    """Look at the rollouts of all lines and do what their policies say; from cron, or as a loop of its own.

    Safe to kill and to start again. A second one beside it is refused. One look ends with the highest exit code of its lines: an error's,
    or 2 where the engine's alert says that store, target or disk are away, or that an end is not carried out yet; a line that somebody
    else changes at this moment is no error.

    \b
    Example:
      esteira tick
      esteira tick --every 60
    """
    import signal

    from esteira import locks
    from esteira.console import interruptible
    from esteira.settings import load_settings

    settings = load_settings()
    with locks.hold(settings.home, "tick", what="looking at the rollouts"):
        if every is None:
            found = looks(settings)
            _tell(found, as_json)
            _tidy(settings)
            return max((one["exit_code"] for one in found), default=0)
        stops = (signal.SIGINT, signal.SIGTERM)
        with interruptible("stopping after this look", numbers=stops) as stopped:
            tidied = -_TIDY_SECONDS
            while not stopped():
                began = time.monotonic()
                _tell(looks(settings), as_json)
                if began - tidied >= _TIDY_SECONDS:
                    _tidy(settings)
                    tidied = began
                while not stopped() and time.monotonic() - began < every:
                    time.sleep(min(0.2, every))
    return 0


def looks(settings: "Settings") -> list[dict[str, Any]]:
    """One look at each line that has a rollout. A line whose look fails is told with its error; the others go on.

    Returns:
        Of each line its `exit_code` and what was decided, or what an end has yet to carry out (action `settle`), or `error`, or
        `skipped`: who has it in hand at this moment.
    """
    from esteira.errors import EsteiraError
    from esteira.rollout import files

    lines = files.lines(settings.home)
    if not lines:
        return []
    from esteira.registry import Registry

    registry = Registry(settings)
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            decision, code = look(line, settings, registry)
        except EsteiraError as error:
            if error.code == "locked":
                found.append({"line": line, "skipped": error.message, "exit_code": 0})
            else:
                found.append({"line": line, "error": error.to_dict(), "exit_code": error.exit_code})
            continue
        except Exception as error:  # noqa: BLE001 - a fault in one line's look must not stop the others'
            _log.exception("the look at %s failed", line)
            letter = {"code": "internal", "message": f"{type(error).__name__}: {str(error)[:300]}", "where": line}
            cure = "a fault of ours; esteira rollout tick LINE --debug"
            found.append({"line": line, "error": {**letter, "cure": cure}, "exit_code": 2})
            continue
        if decision is not None:
            state = decision.state
            found.append(
                {
                    "line": line,
                    "action": decision.action,
                    "status": state.status,
                    "percent": state.percent,
                    "verdict": str(decision.outcome),
                    "reason": decision.reason,
                    "alert": state.alert,
                    "exit_code": code,
                }
            )
    return found


def look(line: str, settings: "Settings", registry: "Registry | None" = None) -> "tuple[Decision | None, int]":
    """One look at one line: what was decided, and 2 where the engine could not do all of its part, else 0."""
    from datetime import UTC, datetime

    from esteira.rollout import alerts, engine

    decision = engine.tick(line, settings=settings, now=datetime.now(UTC), registry=registry)
    faulty = decision is not None and alerts.alert_kind(decision.state.alert) in alerts.ENGINE_ALERTS
    return decision, 2 if faulty else 0


def _tidy(settings: "Settings") -> None:
    """Forget answers that no truth may come for any more, of rollouts that ended too; no look waits for it."""
    from datetime import UTC, datetime

    from esteira.rollout import files
    from esteira.settings import redact

    if not files.lines(settings.home):
        return
    from esteira.store import Store
    from esteira.store.rollouts import KEPT, Rollouts

    try:
        Rollouts(Store.open(settings.database_url, settings.tenant)).prune(datetime.now(UTC) - KEPT)
    except Exception as error:  # noqa: BLE001 - a store that refuses must not end the loop that looks at the rollouts
        _log.warning("old answers are kept until the next time: %s", redact(f"{error}")[:300])


def _tell(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        emit({"lines": found})
        return
    for one in found:
        if "error" in one:
            say(click.style("error: ", fg="red", bold=True) + f"{one['line']}: {one['error']['message']}")
        elif "skipped" in one:
            show(f"{one['line']}: not looked at: {one['skipped']}")
        else:
            alert = f"; alert: {one['alert']}" if one["alert"] else ""
            show(f"{one['line']}: {one['action']}, {one['status']} at {one['percent']:g} %: {one['reason']}{alert}")
