"""Carries out what was decided of a rollout, so that a kill anywhere leaves what the next look finishes. It decides nothing.

A move is prepared in a file, recorded in the ledger, shown to what splits the traffic, and then is the state; last come the
aliases. The ledger entry is what makes it count: a move without one did not happen, a move with one is finished by whoever
comes next. No candidate gets traffic before the ledger says so; taking traffic away never waits for anything.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from esteira import crash, ledger, locks
from esteira.access import ENGINE, Actor, may
from esteira.errors import EsteiraError, OutsideError
from esteira.family import Line
from esteira.gate import Result
from esteira.registry import Registry
from esteira.release.lifecycle import legal
from esteira.rollout import files, moves, targets
from esteira.rollout import split as splits
from esteira.rollout.split import Split, side_dict
from esteira.rollout.state import Rollout
from esteira.settings import Settings, redact
from esteira.store import Store
from esteira.store.releases import Releases

LIVE = frozenset({"running", "paused"})
PROMOTED = "champion"
"""The history's word for: the registry made the candidate the champion."""
SETTLED = "settled"
"""The history's word for: the end is carried out, and what splits the traffic is another rollout's from now on."""
ENGINE_ALERTS = frozenset({"target", "registry", "sums", "ledger", "state", "disk"})
"""What an alert of the engine begins with, before a colon; a policy's begins with something else."""
UNDONE = frozenset({"target", "registry", "ledger", "disk"})
"""Alerts of the engine that say: what was decided is not carried out, or not written down, and is tried again."""

_DISK = frozenset({"disk_full", "cannot_write"})
_TOLERANCE = 0.5  # percent; a proxy's weights are whole numbers
_RETRY = timedelta(minutes=10)  # between two tries to give traffic that could not be given
_WAITS = (0.1, 0.4)  # seconds before the second try and the third
AND = " | "
"""Between the alerts of `joined`."""
_LATE = "the ledger was away when this became so"

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


def carry_out(
    run: Runtime, before: Rollout | None, after: Rollout, *, action: str, reason: str, findings: Sequence[Result] = (),
    also: Sequence[tuple[str, dict[str, Any]]] = (),
) -> Rollout:  # fmt: skip
    """Bring a rollout from one state to another: ledger, traffic, state.

    Traffic that cannot be given is not given: the state stays what it was, with an alert, and the ledger says so too.
    Traffic that cannot be taken away is taken away at the next look that can; the state has an alert until then. Taking it
    away waits neither for the ledger nor for a disk.

    Args:
        before: the state as it is; None or one of another test where this one begins.
        action: the word for it in the ledger's entry of the traffic.
        also: what else the ledger is told of it, kind and evidence.

    Returns:
        The state as it is now.

    Raises:
        OutsideError: the store cannot be written, or a rollout cannot begin since its traffic cannot be given.
    """
    move = secrets.token_hex(8)
    falls = after.percent < _percent(before, after)
    late = ""
    try:
        files.prepare(run.home, after, move)
    except OutsideError as error:
        if not falls:
            raise
        late = f"disk: {error.message}"
    crash.point("rollout.before_record")
    told = [*entries(before, after, action=action, reason=reason, findings=findings, move=move, at=run.now), *also]
    try:
        append(run, after, told)
    except Exception as error:
        if not falls:
            raise
        # Away, a standby, of a newer schema, spoiled: a bad candidate waits for no store. The next look that can writes the entry.
        late = f"ledger: {said(error)}"
    crash.point("rollout.before_shift")
    return _finish(run, before, after, late=late)


def recover(run: Runtime) -> Rollout | None:
    """The state of the line's rollout, after finishing what somebody else's end left half done; None without a rollout.

    Raises:
        Refused: code `bad_rollout_state`.
        OutsideError: something was left half done, and the ledger, which says whether it counts, is away.
    """
    state = files.load(run.home, run.line)
    found = files.prepared(run.home, run.line)
    if found is None:
        return state
    move, after = found
    recorded = any(entry.evidence.get("move") == move for entry in ledger.log(run.store, run.line, limit=None))
    if not recorded:
        began = state is None or state.test_id != after.test_id
        # The challenger of a start that was cut off would stand in the way of every other.
        if began and (why := _drop_challenger(run, after, "its start was cut off")):
            _log.error("%s: %s", run.line, why)
            return state
        files.discard(run.home, run.line)
        return state
    _log.warning("%s: a move that was cut off is finished: %s at %g %%", run.line, after.status, after.percent)
    if (
        state is not None
        and state.test_id == after.test_id
        and state.status == after.status
        and state.status not in LIVE
    ):
        # Only its preparation was left over.
        files.discard(run.home, run.line)
        return state
    if after.status in LIVE and after.percent > _percent(state, after):
        # Its share begins now, whenever it was decided: the time in between is no time in the stage.
        looked = None if after.looked_at is None else max(after.looked_at, run.now)
        after = replace(after, stage_at=max(after.stage_at, run.now), looked_at=looked)
    try:
        return _finish(run, state, after)
    except OutsideError:
        return files.load(run.home, run.line)


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
    last = recorded_traffic(run, state)
    said = float(last["to"]) if last else 0.0
    in_place = splits.read(splits.path(run.home, run.line)) == expected
    if _close(share, wanted) and in_place:
        if not _close(said, wanted):
            _note_late(run, state, said)
        return ""
    if more:
        if not why:
            _note_traffic(run, state, share, wanted, "restore", f"{run.target.name} gave the candidate {share:g} %")
        elif not _close(said, share):
            _note_traffic(run, state, said, share, "hold", why)
        return why
    if soon := too_soon(run, state):
        return soon
    if not (_close(share, wanted) and _close(said, wanted)):
        _note_traffic(run, state, share, wanted, "restore", f"{run.target.name} gave the candidate {share:g} %")
    why = shift(run, expected)
    if why:
        _note_traffic(run, state, wanted, share, "hold", why)
    return why


def settle(run: Runtime, state: Rollout, *, at_once: bool = False) -> Rollout:
    """Bring traffic and aliases of an ended rollout to where its end says; as much as can be done now.

    An approved candidate becomes the champion, and once the champion's own service had time to load it, takes its traffic
    as champion. Of any other end all traffic is taken from the candidate. Then it is the challenger no more, and the end is
    settled: what splits the traffic is never touched for it again, because another line's rollout may use it next.

    Args:
        at_once: the champion's service gets its traffic now, whether or not it had its time: something is wrong with the candidate.

    Returns:
        The state, saved, with an alert for what could not be done.
    """
    if is_settled(state):
        return state
    try:
        why, done = ("", _marked(run, state)) if was_carried_out(run, state) else _settled(run, state, at_once)
    except Exception as error:  # noqa: BLE001 - as in `carry_out`; what fails by a fault of ours is logged by `said`
        disk = isinstance(error, OutsideError) and error.code in _DISK
        why, done = f"{'disk' if disk else 'ledger'}: {said(error)}", state
    after = replace(done, alert=joined(why, own_alert(done.alert, of=UNDONE) or end_alert(done)))
    if after != state:
        if after.alert and after.alert != state.alert:
            _log.error("%s: %s", run.line, after.alert)
        try:
            files.save(run.home, after)
        except OutsideError as error:  # the state that is there leads the next look here again
            return replace(after, alert=joined(f"disk: {error.message}", own_alert(after.alert, of=UNDONE)))
    return after


def is_settled(state: Rollout) -> bool:
    """Whether an end is carried out, to its last alias."""
    return any(entry.get("action") == SETTLED for entry in state.history)


def was_carried_out(run: Runtime, state: Rollout) -> bool:
    """The same by what files, ledger and aliases say: of ends from before they were marked, or cut off before the mark.

    Raises:
        OutsideError: the store is away.
    """
    if state.status in LIVE or splits.path(run.home, run.line).exists():
        return False
    challenger = run.registry.resolve(run.line, "challenger")
    if challenger is not None and challenger.version == state.challenger.version:
        return False
    if state.status == "approved":
        return promoted_at(state) is not None
    _, ended = told_course(run, state)
    last = recorded_traffic(run, state)
    return ended is not None and ended["status"] == state.status and (last is None or float(last["to"]) == 0)


def under_way(state: Rollout) -> bool:
    """Whether the candidate may yet get traffic or the championship by this state. Pure."""
    return state.status in LIVE or (state.status == "approved" and promoted_at(state) is None)


def said(error: Exception) -> str:
    """What an error says, for an alert; a fault that is no letter is logged with its traceback."""
    if isinstance(error, EsteiraError):
        return error.message
    _log.error("not foreseen", exc_info=error)
    return redact(f"{type(error).__name__}: {error}")[:300]


def why_ended(state: Rollout) -> str:
    """The reason of the last thing that was decided of a rollout, in its own words; empty where nothing was."""
    told = (entry for entry in reversed(state.history) if entry.get("action") not in {PROMOTED, SETTLED})
    return next((str(entry.get("reason", "")) for entry in told), "")


def promoted_at(state: Rollout) -> datetime | None:
    """When the registry made the candidate the champion; None before."""
    for entry in reversed(state.history):
        if entry.get("action") == PROMOTED:
            return datetime.fromisoformat(entry["at"])
    return None


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


def entries(
    before: Rollout | None, after: Rollout, *, action: str, reason: str, findings: Sequence[Result], move: str, at: datetime
) -> list[tuple[str, dict[str, Any]]]:  # fmt: skip
    """What the ledger is told of a move: kind and evidence, in order. Pure."""
    common = {
        "test_id": after.test_id,
        "reason": reason,
        "findings": [finding.model_dump(mode="json") for finding in findings],
        "stage": after.stage,
        "at": at.isoformat(),
        "move": move,
    }
    found: list[tuple[str, dict[str, Any]]] = []
    if before is None or before.test_id != after.test_id:
        plan = {"policy": after.policy, "options": dict(after.options), "champion": side_dict(after.champion)}
        found.append(("rollout", {**common, **plan, "action": "started", "challenger": side_dict(after.challenger)}))
    elif before.status != after.status:
        word = {"paused": "paused", "running": "resumed"}.get(after.status, "ended")
        until = None if after.cooldown_until is None else after.cooldown_until.isoformat()
        found.append(("rollout", {**common, "action": word, "status": after.status, "cooldown_until": until}))
    old = _percent(before, after)
    if old != after.percent:
        found.append(("traffic", {**common, **traffic(after, old, after.percent), "action": action}))
    return found


def traffic(state: Rollout, old: float, new: float) -> dict[str, Any]:
    """The shares of an entry: every version that takes traffic, together 1."""
    share = round(new / 100, 6)
    both = ((state.champion, round(1 - share, 6)), (state.challenger, share))
    return {"from": old, "to": new, "shares": [{**side_dict(side), "share": part} for side, part in both if part > 0]}


def note(run: Runtime, state: Rollout, action: str, reason: str, findings: Sequence[Result] = ()) -> None:
    """Tell the ledger of a rollout what moves nothing."""
    evidence = {
        "test_id": state.test_id,
        "action": action,
        "reason": reason,
        "findings": [finding.model_dump(mode="json") for finding in findings],
        "at": run.now.isoformat(),
    }
    append(run, state, [("rollout", evidence)])


def recorded_traffic(run: Runtime, state: Rollout) -> Mapping[str, Any] | None:
    """The evidence of this test's last entry of the traffic; None when there is none."""
    for limit in (100, None):
        for entry in reversed(ledger.log(run.store, run.line, limit=limit)):
            if entry.kind == "traffic" and entry.evidence.get("test_id") == state.test_id:
                return entry.evidence
    return None


def told_course(run: Runtime, state: Rollout) -> tuple[bool, Mapping[str, Any] | None]:
    """Whether the ledger knows of this test's beginning, and the evidence of its last end; None before it ended."""
    ended: Mapping[str, Any] | None = None
    with run.store.read() as connection:
        for entry in Releases(run.store).entries(connection, run.line, "rollout"):
            said = entry["evidence"]
            if said.get("test_id") == state.test_id:
                if said.get("action") == "started":
                    return True, ended
                if said.get("action") == "ended" and ended is None:
                    ended = said
    return False, ended


def too_soon(run: Runtime, state: Rollout) -> str:
    """Why more traffic is not given at this look: it could not be a few minutes ago. Empty when it may be tried."""
    last = recorded_traffic(run, state)
    held = last is not None and last["action"] == "hold" and timedelta(0) <= run.now - _at(last) < _RETRY
    return str(last["reason"]) if last is not None and held else ""


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


def _finish(run: Runtime, before: Rollout | None, after: Rollout, *, late: str = "") -> Rollout:
    """What comes after the entry: traffic, state, aliases."""
    same = before is not None and before.test_id == after.test_id
    old = _percent(before, after)
    moved = old != after.percent
    expected = split_of(run, after) if after.percent > 0 else None
    why = shift(run, expected, first=not same) if moved else ""
    if why and after.percent > old:
        return _give_up(run, before if same else None, after, why)
    crash.point("rollout.before_state")
    after = replace(after, alert=joined(why or late, after.alert or end_alert(after)))
    try:
        files.commit(run.home, after)
    except OutsideError as error:
        if after.percent >= old:
            raise
        return _unsaved(run, after, error)
    crash.point("rollout.before_registry")
    return after if after.status in LIVE else settle(run, after)


def _unsaved(run: Runtime, after: Rollout, error: OutsideError) -> Rollout:
    """The state after its traffic was taken away, where the disk does not take it: the former must not give it back."""
    why = f"disk: {error.message}"
    try:
        files.withdraw(run.home, run.line)
    except OutsideError as stuck:
        why = f"{why}; {stuck.message}"
    _log.error("%s: %s", run.line, why)
    return after if alert_kind(after.alert) in UNDONE else replace(after, alert=joined(why, after.alert))


def _give_up(run: Runtime, before: Rollout | None, after: Rollout, why: str) -> Rollout:
    """Traffic could not be given: back to what was, in the ledger and in the state."""
    if before is not None:
        _note_traffic(run, before, after.percent, before.percent, "hold", why)
        shift(run, split_of(run, before))  # a file that was written before the proxy failed
        held = replace(before, alert=why)
        _log.error("%s: %s", run.line, why)
        files.commit(run.home, held)
        return held
    shift(run, None)
    splits.clear(run.home, run.line)
    evidence = {"test_id": after.test_id, "reason": why, "findings": [], "at": run.now.isoformat()}
    back = {**evidence, **traffic(after, after.percent, 0.0), "stage": after.stage, "action": "hold"}
    ended = {**evidence, "action": "ended", "status": "not_started"}
    append(run, after, [("traffic", back), ("rollout", ended)])
    files.discard(run.home, run.line)
    _drop_challenger(run, after, why)
    raise OutsideError(
        f"a rollout begins when its traffic can be given, but {why}",
        code="target_away",
        where=run.line,
        cure="see that what ESTEIRA_TARGET names is up, then start again",
    )


def _settled(run: Runtime, state: Rollout, at_once: bool) -> tuple[str, Rollout]:
    if state.status != "approved":
        why = reconcile(run, state)
        if not why and splits.path(run.home, run.line).exists():
            why = shift(run, None)
        return _last(run, state, why)
    if promoted_at(state) is None:
        why = reconcile(run, state) if promotion_due(run, state) else ""
        refused, state = _promote(run, state)
        why = refused or why
        if promoted_at(state) is None:
            return why, state
    since = promoted_at(state)
    assert since is not None
    if not at_once and (run.now - since).total_seconds() < run.target.settle_seconds:
        return "", state
    crash.point("rollout.before_handover")
    if run.target.share() != 0 or splits.path(run.home, run.line).exists():
        return _last(run, state, shift(run, None))
    return _last(run, state, "")


def _last(run: Runtime, state: Rollout, why: str) -> tuple[str, Rollout]:
    """What is left when the traffic is where it belongs, and the note that all is done: alert and state."""
    if why:
        return why, state
    if _end_untold(run, state):
        append(run, state, [("rollout", _end_of(run, state))])
    why = _drop_challenger(run, state, f"rollout {state.status}")
    if why:
        return why, state
    return "", _marked(run, state)


def _marked(run: Runtime, state: Rollout) -> Rollout:
    reason = f"the end, {state.status}, is carried out"
    return moves.noted(state, run.now, SETTLED, state.percent, run.actor.name, reason)


def _promote(run: Runtime, state: Rollout) -> tuple[str, Rollout]:
    """Make the candidate the champion, unless it became that already: alert and state."""
    version = state.challenger.version
    if promotion_due(run, state):
        evidence = {"test_id": state.test_id, "at": run.now.isoformat()}
        reason = next((str(e["reason"]) for e in reversed(state.history) if e.get("action") == "promote"), "approved")
        # The decision was made by who might; who finishes it after a kill need not be the same.
        actor = run.actor if may(run.actor, "promote") else ENGINE
        try:
            run.registry.promote(run.line, version, actor=actor, reason=reason, evidence=evidence, now=run.now)
        except EsteiraError as error:
            return f"registry: {error.message}", state
    mark = {
        "at": run.now.isoformat(), "action": PROMOTED, "from": 100.0, "to": 100.0, "actor": run.actor.name,
        "reason": f"version {version} is the champion, or was until a later move",
    }  # fmt: skip
    after = replace(state, history=(*state.history, mark))
    files.save(run.home, after)
    return "", after


def promotion_due(run: Runtime, state: Rollout) -> bool:
    """Whether an approved candidate has yet to become the champion. A promotion that was made and undone since is none."""
    if state.status != "approved" or promoted_at(state) is not None:
        return False
    champion = run.registry.resolve(run.line)
    if champion is None or champion.bundle_id != state.champion.bundle_id:
        return False  # it is the champion, or another one was made that since
    ended = False
    for entry in ledger.log(run.store, run.line, limit=None):
        if entry.kind == "rollout" and entry.evidence.get("test_id") == state.test_id:
            ended = ended or entry.evidence.get("action") == "ended"
        moves = entry.evidence.get("moves")
        if ended and isinstance(moves, dict) and moves.get("champion", [None, None])[1] == state.challenger.version:
            return False
    return True


def _drop_challenger(run: Runtime, state: Rollout, reason: str) -> str:
    """The end of the test in the registry; a version that was rolled back is marked so, where its state lets it be."""
    try:
        found = run.registry.resolve(run.line, "challenger")
        if found is None or found.version != state.challenger.version:
            return ""
        marked = state.status == "rolled_back" and legal(found.state, "rolled_back")
        run.registry.drop_alias(
            run.line, "challenger", actor=run.actor, reason=reason, now=run.now, state="rolled_back" if marked else None
        )
    except EsteiraError as error:
        return f"registry: {error.message}"
    return ""


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


def _note_traffic(run: Runtime, state: Rollout, old: float, new: float, action: str, reason: str) -> None:
    evidence = {
        "test_id": state.test_id,
        "stage": state.stage,
        **traffic(state, old, new),
        "action": action,
        "reason": reason,
        "findings": [],
        "at": run.now.isoformat(),
    }
    append(run, state, [("traffic", evidence)])


def _note_late(run: Runtime, state: Rollout, said: float) -> None:
    """What is so already and the ledger could not be told at its time."""
    told: list[tuple[str, dict[str, Any]]] = []
    if _end_untold(run, state):
        told.append(("rollout", _end_of(run, state)))
    shares = {**traffic(state, said, state.percent), "test_id": state.test_id, "at": run.now.isoformat()}
    told.append(("traffic", {**shares, "stage": state.stage, "action": "restore", "reason": _LATE, "findings": []}))
    append(run, state, told)


def _end_untold(run: Runtime, state: Rollout) -> bool:
    """Whether the ledger knows this rollout, and not that it ended without success. An end by success is told before it is one."""
    if state.status in LIVE or state.status == "approved":
        return False
    started, ended = told_course(run, state)
    # A promotion that could not get its traffic was told as an end, too, and then it went on.
    return started and (ended is None or ended["status"] == "approved")


def _end_of(run: Runtime, state: Rollout) -> dict[str, Any]:
    """The evidence of an end that the ledger could not be told at its time."""
    until = None if state.cooldown_until is None else state.cooldown_until.isoformat()
    return {
        "test_id": state.test_id, "reason": why_ended(state) or _LATE, "findings": [], "at": run.now.isoformat(),
        "action": "ended", "status": state.status, "cooldown_until": until, "late": _LATE,
    }  # fmt: skip


def append(run: Runtime, state: Rollout, told: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Append entries of the candidate, all or none."""
    with run.store.begin() as connection:
        run.store.alone(connection)
        for kind, evidence in told:
            ledger.append(
                run.store, kind=kind, line=run.line, actor=run.actor.name, evidence={**evidence, **run.actor.told()}, now=run.now,
                version=state.challenger.version, bundle_id=state.challenger.bundle_id, connection=connection,
            )  # fmt: skip


def _percent(before: Rollout | None, after: Rollout) -> float:
    """What the candidate took before a move; of another test's candidate, nothing."""
    return before.percent if before is not None and before.test_id == after.test_id else 0.0


def _close(a: float, b: float) -> bool:
    # Nothing and a little are never the same.
    return abs(a - b) <= _TOLERANCE and (a == 0) == (b == 0)


def _at(evidence: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(str(evidence["at"]))
