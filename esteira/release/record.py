"""The release record: all that is known of one version of a line, gathered from registry and ledger. It decides nothing.

One document, which `esteira release show` prints as JSON and `esteira.release.page` draws: what data and code made it, what the gate
saw, how it did in rehearsal, who approved it, which share of traffic it took when, what it replaced, and every entry of the ledger
that says so, with its hash.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from esteira import ledger
from esteira.errors import NotFound
from esteira.ledger import Change, Entry
from esteira.registry import Registry, Version

VERSION = 1
"""Of the document's form."""

_APPROVAL = {"approval_request": "requested", "approval": "approved", "approval_void": "void", "denied": "denied"}


def record(registry: Registry, line: str, version: int | None = None) -> dict[str, Any]:
    """The record of a version, as JSON values; times are UTC text as in the ledger.

    Args:
        line: the model line.
        version: its number; by default the champion, and without one the newest.

    Returns:
        `{"line", "version", "bundle_id", "state", "aliases", "registered", "data", "code", "run", "metrics", "gate",
        "rehearsal", "unrehearsed", "approval", "rollouts", "shares", "serving", "replaced", "replaced_by", "ledger"}`; what is not
        recorded is null or empty. `unrehearsed` says why there was no rehearsal. `shares` is every change from the first that gave
        it traffic to the one that took it, oldest first.

    Raises:
        NotFound: code `unknown_version`.
        Refused: code `broken_ledger`; an entry cannot be read as what it says it is.
    """
    known = _find(registry, line, version)
    lineage = registry.lineage(known)
    verdict = ledger.verify(registry.store)
    changes = list(ledger.course(registry.store, line))
    shares = _shares(changes, known.version)
    moved = {change["seq"] for change in shares}
    about = [entry for entry in ledger.entries(registry.store, line) if entry.seq in moved or _about(entry, known)]
    own = [entry for entry in about if _of(entry, known)]
    return {
        "record": VERSION,
        "line": line,
        "version": known.version,
        "bundle_id": known.bundle_id,
        "state": known.state,
        "aliases": sorted(alias for alias, at in registry.aliases(line).items() if at == known.version),
        "registered": {"at": _registered(own, known), "by": known.actor, "archived": known.archived_at is not None},
        "data": _data(lineage["data"]),
        "code": {"revision": known.code_revision, "params_hash": known.params_hash, "params": known.params},
        "run": _run(lineage["run"]),
        "metrics": {name: value for name, value in known.metrics.items() if name != "baseline"},
        "baseline": known.metrics.get("baseline") or {},
        "gate": _gate(own),
        "rehearsal": _rehearsal(own),
        "unrehearsed": _unrehearsed(own, known),
        "approval": _approval(own),
        "rollouts": _rollouts(own),
        "shares": shares,
        "serving": _serving(changes, known.version),
        "replaced": _replaced(registry, about, known),
        "replaced_by": _replaced_by(about, known),
        "ledger": {
            "ok": verdict.ok,
            "entries": verdict.entries,
            "head": verdict.head,
            "broken_at": verdict.broken_at,
            "reason": verdict.reason,
            "about": [entry.to_dict() for entry in about],
        },
    }


def lines(document: Mapping[str, Any]) -> list[str]:
    """The record in a few lines of text, for a terminal."""
    gate, approval, rehearsal = document["gate"], document["approval"], document["rehearsal"]
    head = f"{document['line']} version {document['version']}: {document['state']}"
    named = f" ({', '.join(document['aliases'])})" if document["aliases"] else ""
    found = [
        head + named,
        f"  bundle      {document['bundle_id']}",
        f"  registered  {document['registered']['at'] or 'unknown'} by {document['registered']['by']}",
        f"  data        {document['data']['hash'][:12]}  {document['data']['name'] or ''}".rstrip(),
        f"  code        {document['code']['revision']}",
        f"  gate        {'no verdict' if gate is None else gate['summary']}",
    ]
    if rehearsal is not None:
        found.append(f"  rehearsal   {rehearsal.get('summary') or rehearsal.get('verdict')}")
    elif document["unrehearsed"]:
        found.append(f"  rehearsal   not rehearsed: {document['unrehearsed']}")
    if approval["status"] != "none":
        found.append(f"  approval    {approval['status']} by {approval['by']}, {approval['at']}: {approval['reason']}")
    found += [
        f"  rollout     {one['test_id']}: {one['end'] or 'running'} {one['reason']}".rstrip()
        for one in document["rollouts"]
    ]
    found += [
        f"  traffic     {change['at']}  {100 * change['share']:g} %  by {change['by']}  {change['reason']}".rstrip()
        for change in document["shares"]
    ]
    if document["replaced"]:
        found.append(f"  replaced    version {document['replaced']['version']}")
    if document["replaced_by"]:
        by = document["replaced_by"]
        found.append(f"  replaced by version {by['version']}, {by['at']}: {by['reason']}")
    chain = document["ledger"]
    state = "holds" if chain["ok"] else f"is broken at {chain['broken_at']}"
    found.append(f"  ledger      {len(chain['about'])} of {chain['entries']} entries; the chain {state}")
    return found


def _find(registry: Registry, line: str, version: int | None) -> Version:
    if version is None:
        newest = registry.versions(line)
        found = registry.resolve(line) or (newest[0] if newest else None)
    else:
        return registry.must(line, version)
    if found is None:
        raise NotFound(
            f"a record is of a registered version, but {line} has no version yet",
            code="unknown_version",
            where=line,
            cure="see `esteira release ls` for what there is",
        )
    return found


# Which entries


def _of(entry: Entry, version: Version) -> bool:
    """Whether an entry is about this very version; a bundle_id that it names must be the version's."""
    return entry.version == version.version and entry.bundle_id in (None, version.bundle_id)


def _about(entry: Entry, version: Version) -> bool:
    """Whether an entry says anything of the version, as the one that is left, too."""
    evidence: Any = entry.evidence
    if not isinstance(evidence, Mapping):  # somebody changed it to what is no JSON; the chain tells where
        return False
    if _of(entry, version):
        return True
    number = version.version
    moves = evidence.get("moves")
    if isinstance(moves, Mapping) and any(isinstance(ends, list) and number in ends for ends in moves.values()):
        return True
    shares = evidence.get("shares")
    if isinstance(shares, list) and any(isinstance(one, Mapping) and one.get("version") == number for one in shares):
        return True
    return entry.kind == "rollback" and number in (evidence.get("from"), evidence.get("to"))


# Parts


def _registered(own: Sequence[Entry], version: Version) -> str:
    at = next((entry.at for entry in own if entry.kind == "registration"), "")
    return at or version.created_at.isoformat().replace("+00:00", "Z")


def _data(said: Mapping[str, Any]) -> dict[str, Any]:
    dataset = said["dataset"] or {}
    source = (dataset.get("source_config") or {}).get("source") or dataset.get("file_path")
    return {
        "hash": said["hash"],
        "name": dataset.get("name"),
        "source": source,
        "rows": dataset.get("row_count"),
        "columns": dataset.get("column_count"),
        "quality_score": dataset.get("quality_score"),
        "recorded": said["dataset"] is not None,
    }


def _run(said: Mapping[str, Any]) -> dict[str, Any]:
    run = said["run"] or {}
    kept = {name: run.get(name) for name in ("status", "seed", "source", "started_at", "finished_at")}
    return {"run_id": said["run_id"], "mlflow_run_id": said["mlflow_run_id"], **kept}


def _gate(own: Sequence[Entry]) -> dict[str, Any] | None:
    """The verdict that it was registered with."""
    entry = next((one for one in own if one.kind == "verdict"), None)
    if entry is None:
        return None
    rules = [_rule(rule) for rule in entry.evidence.get("rules") or [] if isinstance(rule, Mapping)]
    passed = sum(rule["outcome"] == "PASS" for rule in rules)
    return {
        "at": entry.at,
        "verdict": entry.evidence.get("verdict"),
        "summary": entry.evidence.get("summary") or f"{passed} of {len(rules)} rules passed",
        "moment": entry.evidence.get("moment") or "evaluation",
        "rules": rules,
        "seq": entry.seq,
        "hash": entry.hash,
    }


def _rule(said: Mapping[str, Any]) -> dict[str, Any]:
    names = ("rule", "outcome", "metric", "value", "op", "bound", "n", "interval", "reason")
    return {name: said.get(name) for name in names}


def _rehearsal(own: Sequence[Entry]) -> dict[str, Any] | None:
    entry = next((one for one in reversed(own) if one.kind == "rehearsal"), None)
    return None if entry is None else {**entry.evidence, "at": entry.at, "seq": entry.seq, "hash": entry.hash}


def _unrehearsed(own: Sequence[Entry], version: Version) -> str:
    """Why it went into production last without a rehearsal that it passed (S-20); empty where it had one, or never went."""
    moves = [
        entry.evidence
        for entry, _, taken in _champion_moves(own)
        if taken == version.version and "rehearsal" in entry.evidence
    ]
    if not moves or moves[-1]["rehearsal"] is not None:
        return ""
    if moves[-1].get("basis") == "override":
        return f"overridden: {moves[-1].get('override')}"
    said = next((entry.evidence.get("release") for entry in reversed(own) if entry.kind == "registration"), None)
    whose = "its run" if isinstance(said, Mapping) and said.get("rehearse") is True else "the line"
    return f"{whose} says rehearse: false"


def _approval(own: Sequence[Entry]) -> dict[str, Any]:
    """How it stands with the approval, and every word that was said about it.

    The status is of the ledger's last word; whether an approval has run out since `expires_at` tells.
    """
    events = [
        {
            "at": entry.at,
            "status": _APPROVAL[entry.kind],
            "by": entry.actor,
            "reason": entry.evidence.get("reason") or "",
            "expires_at": entry.evidence.get("expires_at"),
            "seq": entry.seq,
            "hash": entry.hash,
        }
        for entry in own
        if entry.kind in _APPROVAL
    ]
    last = next((one for one in reversed(events) if one["status"] != "denied"), None)
    if last is None:
        return {"status": "none", "by": None, "at": None, "reason": "", "expires_at": None, "events": events}
    return {**{name: last[name] for name in ("status", "by", "at", "reason", "expires_at")}, "events": events}


def _rollouts(own: Sequence[Entry]) -> list[dict[str, Any]]:
    """Its rollouts, oldest first, each with its steps and what was found last."""
    found: dict[str, dict[str, Any]] = {}
    for entry in own:
        test = entry.evidence.get("test_id")
        if entry.kind not in {"rollout", "traffic"} or not test:
            continue
        one = found.setdefault(
            str(test),
            {
                "test_id": str(test), "policy": None, "started_at": entry.at, "ended_at": None, "end": "", "reason": "",
                "findings": [], "steps": [],
            },
        )  # fmt: skip
        said = entry.evidence
        one["policy"] = said.get("policy") or one["policy"]
        action = str(said.get("action") or entry.kind)
        one["steps"].append(
            {
                "at": entry.at,
                "kind": entry.kind,
                "action": action,
                "stage": said.get("stage"),
                "from": said.get("from") if entry.kind == "traffic" else None,
                "to": said.get("to") if entry.kind == "traffic" else None,
                "by": entry.actor,
                "reason": said.get("reason") or "",
                "seq": entry.seq,
                "hash": entry.hash,
            }
        )
        findings = [_rule(rule) for rule in said.get("findings") or [] if isinstance(rule, Mapping)]
        one["findings"] = findings or one["findings"]
        if entry.kind == "rollout" and action == "ended":
            end = said.get("status") or said.get("verdict")
            one["ended_at"], one["end"] = entry.at, str(end or one["end"] or "ended")
            one["reason"] = str(said.get("reason") or one["reason"])
        elif action in {"promote", "roll_back", "inconclusive"}:
            one["end"] = one["end"] or action
            one["ended_at"], one["reason"] = one["ended_at"] or entry.at, str(said.get("reason") or one["reason"])
    return list(found.values())


def _shares(changes: Sequence[Change], version: int) -> list[dict[str, Any]]:
    """The course of its share, from the entry that first gave it traffic to the one that took the last of it."""
    found: list[dict[str, Any]] = []
    before: dict[int, float] = {}
    for change in changes:
        shares = {one.version: one.share for one in change.shares}
        if shares == before:
            continue
        if version in shares or version in before:
            found.append(
                {
                    "at": change.at,
                    "share": shares.get(version, 0.0),
                    "before": before.get(version, 0.0),
                    "others": [
                        {"version": other, "share": share} for other, share in shares.items() if other != version
                    ],
                    "others_before": [
                        {"version": other, "share": share} for other, share in before.items() if other != version
                    ],
                    "action": change.action,
                    "by": change.actor,
                    "reason": change.reason,
                    "seq": change.seq,
                    "hash": change.hash,
                }
            )
        before = shares
    return found


def _serving(changes: Sequence[Change], version: int) -> float:
    """Its share after the last change, in [0, 1]."""
    return next((one.share for one in changes[-1].shares if one.version == version), 0.0) if changes else 0.0


def _champion_moves(about: Sequence[Entry]) -> list[tuple[Entry, int | None, int | None]]:
    found = []
    for entry in about:
        moves = entry.evidence.get("moves")
        ends = moves.get("champion") if isinstance(moves, Mapping) else None
        if isinstance(ends, list) and len(ends) == 2:
            found.append((entry, ends[0], ends[1]))
    return found


def _replaced(registry: Registry, about: Sequence[Entry], version: Version) -> dict[str, Any] | None:
    """The champion before, when it became champion first."""
    for entry, left, taken in _champion_moves(about):
        if taken == version.version:
            if left is None:
                return None
            former = registry.get(version.line, int(left))
            bundle_id = former.bundle_id if former else None
            return {"version": left, "bundle_id": bundle_id, "at": entry.at, "by": entry.actor, "seq": entry.seq}
    return None


def _replaced_by(about: Sequence[Entry], version: Version) -> dict[str, Any] | None:
    """The champion after it, where it is champion no more."""
    found = None
    for entry, left, taken in _champion_moves(about):
        if taken == version.version:
            found = None
        elif left == version.version and taken is not None:
            reason = entry.evidence.get("reason") or ""
            found = {
                "version": taken, "bundle_id": entry.bundle_id, "at": entry.at, "by": entry.actor, "kind": entry.kind,
                "reason": reason, "seq": entry.seq,
            }  # fmt: skip
    return found
