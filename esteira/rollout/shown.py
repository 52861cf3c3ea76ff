"""Where a rollout stands, as people and scripts see it; it is shown with the store away, too."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from esteira import access
from esteira.errors import EsteiraError, Refused
from esteira.registry import Registry
from esteira.rollout import alerts, engine, files, targets
from esteira.rollout.runtime import Runtime
from esteira.rollout.split import side_dict
from esteira.rollout.state import LIVE, Rollout, ended_at, promoted_at, under_way, why_ended
from esteira.rollout.sums import ArmName, Sums
from esteira.settings import Settings


def status(
    line: str, *, settings: Settings, now: datetime,
    target: targets.Target | None = None, registry: Registry | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Where a line's rollout stands, as JSON values; changes nothing.

    Returns:
        `status` (of the state; `none` without one, `unreadable` where it cannot be read), `percent`, `since` (of the stage,
        and once it ended of its end),
        `arms` (candidate and control: version and what they did, in this stage and in all), `verdict` (PASS, FAIL or NO_DATA,
        of a look that were made now; null once it ended), and what explains them. With the store away, by what the last look
        saw, and with an alert that says so.
    """
    chosen = target or targets.make(settings, line)
    share = {"name": chosen.name, "percent": chosen.share()}
    nothing: dict[str, Any] = {
        "line": line,
        "percent": 0.0,
        "since": None,
        "arms": {},
        "verdict": None,
        "target": share,
    }
    try:
        state = files.load(settings.home, line)
    except Refused as error:
        return {**nothing, "status": "unreadable", "alert": f"state: {error.message}"}
    if state is None:
        aside = files.path(settings.home, line).with_suffix(".bad").exists()
        backup = files.load_backup(settings.home, line)
        if backup is not None and under_way(backup):
            return {**nothing, "status": "unreadable", "alert": "state: it is gone, and the one before was under way"}
        return {
            **nothing,
            "status": "none",
            "alert": "state: a state that could not be read lies aside" if aside else "",
        }
    run = Runtime(line, settings, registry or Registry(settings), chosen, now, access.ENGINE)
    try:
        seen = engine.measured(run, state)
    except Exception as error:  # noqa: BLE001 - how it stands is shown by whatever is left to ask
        known = alerts.alert_kind(state.alert) in alerts.ENGINE_ALERTS
        seen = state if known else replace(state, alert=alerts.joined(f"sums: {alerts.said(error)}", state.alert))
    return {**described(seen, now), "target": share}


def undone(state: Rollout | None, line: str) -> dict[str, str] | None:
    """What was decided and could not be carried out yet, as a letter (code `not_carried_out`); None where all is done. Pure."""
    kind = "" if state is None else alerts.alert_kind(state.alert)
    if state is None or kind not in alerts.UNDONE:
        return None
    cure = _CURES[kind]
    if state.status == "approved" and promoted_at(state) is None:
        cure = f"{cure}; `esteira rollback {line} --reason TEXT` takes the traffic back at once"
    return {
        "code": "not_carried_out",
        "message": f"{_takes(state, kind)}: {state.alert}",
        "where": line,
        "cure": f"{cure}; each look of `esteira tick` tries again",
    }


_CURES = {
    "target": "see that what ESTEIRA_TARGET names is up, or take the share away there by hand",
    "registry": "see that platform store and artefact storage (ESTEIRA_DATABASE_URL, ESTEIRA_ARTIFACTS) are up, and the line's own",
    "ledger": "see that the platform store (ESTEIRA_DATABASE_URL) is up, which holds the ledger",
    "disk": "make room in ESTEIRA_HOME, and see who may write there",
}


def _takes(state: Rollout, kind: str) -> str:
    """Whether the candidate takes traffic where an end could not be carried out, for who is woken by it. Pure."""
    if state.status == "approved":
        if promoted_at(state) is None:
            return "the candidate may take all of the traffic and is not the champion yet"
        return "the candidate is the champion, but not all is done"
    if kind == "target":
        return "the candidate may still take traffic"
    return "the candidate takes no traffic any more, but not all is done"


def described(state: Rollout, now: datetime) -> dict[str, Any]:
    """A state as people and scripts see it. Pure."""
    look: dict[str, Any] = {"verdict": None, "action": None, "reason": "", "findings": []}
    if state.status in LIVE:
        from esteira.rollout.policies import make

        try:
            decision = make(state.policy).decide(state, now)
            look = {
                "verdict": str(decision.outcome),
                "action": decision.action,
                "reason": decision.reason,
                "findings": [finding.model_dump(mode="json") for finding in decision.findings],
            }
        except Exception as error:  # noqa: BLE001 - a look ends it then; whoever asks how it stands is told why
            look["reason"] = error.message if isinstance(error, EsteiraError) else f"{type(error).__name__}: {error}"
    else:
        look["reason"] = why_ended(state)
    ended = ended_at(state)
    arms = {
        "candidate": {**side_dict(state.challenger), **_arm(state, "candidate")},
        "control": {**side_dict(state.champion), **_arm(state, "control")},
    }
    return {
        "line": state.line,
        "test_id": state.test_id,
        "status": state.status,
        "percent": state.percent,
        "since": (ended or state.stage_at).isoformat(),
        "arms": arms,
        **look,
        "alert": state.alert,
        "policy": state.policy,
        "stage": state.stage,
        "stage_seconds": state.seconds(ended or now),
        "started_at": state.started_at.isoformat(),
        "paused_at": None if state.paused_at is None else state.paused_at.isoformat(),
        "looked_at": None if state.looked_at is None else state.looked_at.isoformat(),
        "cooldown_until": None if state.cooldown_until is None else state.cooldown_until.isoformat(),
        "options": dict(state.options),
        "history": [dict(entry) for entry in state.history],
    }


def _arm(state: Rollout, name: ArmName) -> dict[str, Any]:
    whole = sum((arms[name] for arms in state.sums.values() if name in arms), Sums())
    return {**_figures(state.arm(name)), "all_stages": _figures(whole)}


def _figures(sums: Sums) -> dict[str, Any]:
    p95 = sums.latency_at(0.95)
    return {
        "served": sums.served,
        "errors": sums.errors,
        "error_rate": sums.error_rate,
        "labelled": sums.labelled,
        "accuracy": sums.accuracy,
        "mean_confidence": sums.mean_confidence,
        "p95_ms": None if p95 is None else round(p95 * 1000, 3),
    }
