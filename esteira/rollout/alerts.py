"""What a rollout's alert says: the engine's faults first, by kind, then a policy's word to a person. Pure, but for the log of `said`."""

import logging

from esteira.errors import EsteiraError
from esteira.rollout.state import LIVE, Rollout, why_ended
from esteira.settings import redact

ENGINE_ALERTS = frozenset({"target", "registry", "sums", "ledger", "state", "disk"})
"""What an alert of the engine begins with, before a colon; a policy's begins with something else."""
UNDONE = frozenset({"target", "registry", "ledger", "disk"})
"""Alerts of the engine that say: what was decided is not carried out, or not written down, and is tried again."""
AND = " | "
"""Between the alerts of `joined`."""

_log = logging.getLogger("esteira.rollout")


def end_alert(state: Rollout) -> str:
    """What a person should know of an end: why a candidate was turned down."""
    if state.status in LIVE or state.status == "approved":
        return ""
    return f"{state.status}: {why_ended(state) or 'see the ledger'}"


def new_alert(before: str, after: str) -> bool:
    """Whether an alert tells what the one before did not: another fault of the engine's, or a first word of the policy. Pure."""
    kind, own = alert_kind(after), own_alert(after)
    fault = kind in ENGINE_ALERTS and kind != alert_kind(before)
    return fault or bool(own and not own_alert(before))


def alert_kind(alert: str) -> str:
    """What stands before the first colon: alerts of one kind say the same thing with other numbers."""
    return alert.partition(":")[0] if alert else ""


def own_alert(alert: str, *, of: frozenset[str] = ENGINE_ALERTS) -> str:
    """What is left of an alert without the parts that are found anew at every look."""
    while alert_kind(alert) in of:
        alert = alert.partition(AND)[2]
    return alert


def joined(why: str, alert: str) -> str:
    """Both alerts, that of the engine first, so that `own_alert` finds the other again."""
    return f"{why}{AND}{alert}" if why and alert else why or alert


def said(error: Exception) -> str:
    """What an error says, for an alert; a fault that is no letter is logged with its traceback."""
    if isinstance(error, EsteiraError):
        return error.message
    _log.error("not foreseen", exc_info=error)
    return redact(f"{type(error).__name__}: {error}")[:300]
