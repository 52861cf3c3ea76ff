"""Shows a rollout's share to what splits the traffic, and brings both together again where they differ."""

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from esteira.errors import EsteiraError, OutsideError
from esteira.rollout import alerts, telling
from esteira.rollout import split as splits
from esteira.rollout.runtime import Runtime
from esteira.rollout.split import Split
from esteira.rollout.state import Rollout

_TOLERANCE = 0.5  # percent; a proxy's weights are whole numbers
_RETRY = timedelta(minutes=10)  # between two tries to give traffic that could not be given
_WAITS = (0.1, 0.4)  # seconds before the second try and the third


def shift(run: Runtime, split: Split | None, *, first: bool = False) -> str:
    """Show a split to what serves and to what splits the traffic, with three tries.

    Args:
        first: the rollout begins.

    Returns:
        Why it could not be done, as an alert; empty when it was.
    """
    why = ""
    for wait in (0.0, *_WAITS):
        time.sleep(wait)
        try:
            _show(run, split, first)
            return ""
        except OutsideError as error:
            why = f"target: {error.message}"
            if error.code == "candidate_down":
                return why  # the target itself waited as long as it is worth
        except EsteiraError as error:
            return f"target: {error.message}"
    return why


def take(run: Runtime) -> str:
    """Take all traffic from the candidate at what splits it outside, and leave the file: alert, empty when it was done."""
    try:
        if run.outside:
            run.target.shift(None)
    except EsteiraError as error:
        return f"target: {error.message}"
    return ""


def reconcile(run: Runtime, state: Rollout) -> str:
    """Make what splits the traffic do what the state says, and the ledger say what is so.

    Returns:
        Why it does not, as an alert; empty when all is well.
    """
    wanted, share = state.percent, run.target.share()
    if share is None:
        return f"target: {run.target.name} cannot be read, so nobody knows whether the candidate takes its {wanted:g} %"
    expected = split_of(run, state) if wanted > 0 else None
    more = share > wanted + _TOLERANCE or (wanted == 0 < share)
    # What is too much is taken away first: that must not hang on a ledger that can be read.
    why = shift(run, expected) if more else ""
    if why:
        return _told(run, state, share, why)
    last = telling.recorded_traffic(run, state)
    said = float(last["to"]) if last else 0.0
    in_place = splits.read(splits.path(run.home, run.line)) == expected
    if _close(share, wanted) and in_place:
        if not _close(said, wanted):
            telling.note_late(run, state, said)
        return ""
    if more:
        telling.note_traffic(run, state, share, wanted, "restore", f"{run.target.name} gave the candidate {share:g} %")
        return ""
    if soon := too_soon(run, state):
        return soon
    if not (_close(share, wanted) and _close(said, wanted)):
        telling.note_traffic(run, state, share, wanted, "restore", f"{run.target.name} gave the candidate {share:g} %")
    why = shift(run, expected)
    if why:
        telling.note_traffic(run, state, wanted, share, "hold", why)
    return why


def _told(run: Runtime, state: Rollout, share: float, why: str) -> str:
    """Tell the ledger what could not be taken away; with the ledger away, too, that it still takes it is what stands first."""
    try:
        last = telling.recorded_traffic(run, state)
        said = float(last["to"]) if last else 0.0
        if not _close(said, share):
            telling.note_traffic(run, state, said, share, "hold", why)
    except Exception as error:  # noqa: BLE001 - whatever the store raises, it hides nothing
        return alerts.joined(why, f"ledger: {alerts.said(error)}")
    return why


def too_soon(run: Runtime, state: Rollout) -> str:
    """Why more traffic is not given at this look: it could not be a few minutes ago. Empty when it may be tried."""
    last = telling.recorded_traffic(run, state)
    held = last is not None and last["action"] == "hold" and timedelta(0) <= run.now - _at(last) < _RETRY
    return str(last["reason"]) if last is not None and held else ""


def split_of(run: Runtime, state: Rollout) -> Split:
    """The split that a state asks for."""
    options: dict[str, Any] = {}
    if state.policy == "flags":
        from esteira.rollout.flags import split_options

        options = dict(split_options(state))
    elif state.policy == "ab":
        # By these services know an experiment, whose users count once, and what may be fed back of them.
        from esteira.rollout.ab import split_options as of_experiment

        options = dict(of_experiment(state))
    if run.outside:
        options |= {"outside": True, "asks_again": run.target.asks_again}
    return Split(
        test_id=state.test_id, salt=state.salt, percent=state.percent, stage=state.stage, champion=state.champion,
        challenger=state.challenger, options=options,
    )  # fmt: skip


def _show(run: Runtime, split: Split | None, first: bool) -> None:
    if not run.outside:
        run.target.shift(split, first=first)
        return
    # The services count by the file's test and stage: it is there before the traffic comes and until it is gone.
    if split is not None:
        splits.write(run.home, run.line, split)
    run.target.shift(split, first=first)
    if split is None:
        splits.clear(run.home, run.line)


def _close(a: float, b: float) -> bool:
    # Nothing and a little are never the same.
    return abs(a - b) <= _TOLERANCE and (a == 0) == (b == 0)


def _at(evidence: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(str(evidence["at"]))
