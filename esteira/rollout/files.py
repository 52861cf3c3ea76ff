"""The state of a rollout on disk (H-45): one JSON file a line, replaced whole, with the last good one kept beside it.

Every move is prepared before it is recorded: `prepare` writes the state as it will be, the ledger entry makes it count,
`commit` puts it in the state's place. What was prepared and never recorded did not happen; `esteira.rollout.engine` tells
them apart after a kill.
"""

import contextlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from esteira import outputs
from esteira.errors import OutsideError, Refused
from esteira.rollout.split import FOLDER, side_dict, side_of
from esteira.rollout.state import SCHEMA, Rollout, Status
from esteira.rollout.sums import ArmName, Sums

_FIELDS = frozenset(
    {
        "schema", "test_id", "line", "policy", "champion", "challenger", "salt", "started_at", "stage_at", "status", "stage",
        "percent", "paused_at", "paused_seconds", "looked_at", "looks", "pooled_looks", "negatives", "judged_at",
        "pooled_from", "alert", "cooldown_until", "options", "sums", "history",
    }
)  # fmt: skip
_TEXTS = ("test_id", "line", "policy", "salt", "alert")
_COUNTS = ("stage", "looks", "pooled_looks", "negatives", "pooled_from")
_STATUSES: tuple[str, ...] = get_args(Status)
_ARMS: tuple[str, ...] = get_args(ArmName)


def path(home: Path, line: str) -> Path:
    """Where the state of a line's rollout lies; `.bak` beside it is the one before."""
    return home / FOLDER / f"{line}.json"


def lines(home: Path) -> list[str]:
    """Lines that have a rollout, or something left of one, by name."""
    found = {
        file.name.removesuffix(suffix)
        for suffix in (".json", ".split", ".next", ".bak")
        for file in (home / FOLDER).glob(f"*{suffix}")
        if not file.name.startswith(".")
    }
    return sorted(found)


def load(home: Path, line: str) -> Rollout | None:
    """The state of a line's rollout, running or ended; None when the line never had one.

    Raises:
        Refused: code `bad_rollout_state`; the file is cut short, changed, of another line or of an unknown schema, or cannot
            be opened: whoever cannot read how a rollout stands must not go on with it.
    """
    return _read(path(home, line), line)


def load_backup(home: Path, line: str) -> Rollout | None:
    """The last good state but one; None when there is none that can be read."""
    try:
        return _read(path(home, line).with_suffix(".bak"), line)
    except Refused:
        return None


def save(home: Path, state: Rollout) -> None:
    """Make this the state of its line, and what was the state the backup; each file appears whole or not at all.

    Raises:
        OutsideError: the disk is full or cannot be written; the state is what it was.
    """
    _back_up(home, state.line)
    outputs.write(home / FOLDER, {path(home, state.line).name: encode(state)})


def prepare(home: Path, state: Rollout, move: str) -> None:
    """Write down the state as a move will leave it. It counts from the moment the ledger has an entry of that move.

    Args:
        move: unique name of the move, which the ledger entry carries too.
    """
    document = {"move": move, "state": json.loads(encode(state))}
    outputs.write(home / FOLDER, {_next(home, state.line).name: _bytes(document)})


def prepared(home: Path, line: str) -> tuple[str, Rollout] | None:
    """The move that was prepared and not finished, and the state it leads to; None when there is none.

    A file that cannot be read as one is None too: what is renamed into place is whole, so it is none of ours.
    """
    try:
        document = json.loads(_next(home, line).read_bytes())
        return str(document["move"]), decode(_bytes(document["state"]), line)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, Refused):
        return None


def commit(home: Path, state: Rollout) -> None:
    """Make this the state and forget what was prepared."""
    save(home, state)
    discard(home, state.line)


def discard(home: Path, line: str) -> None:
    """Forget what was prepared."""
    # A folder of that name was never prepared by anybody, and is read as nothing.
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        _next(home, line).unlink()


def set_aside(home: Path, line: str) -> Path | None:
    """Move a state that cannot be read out of the way, as `<line>.bad`, for whoever looks into it; None when there is none.

    Raises:
        OutsideError: code `cannot_write`; it stays where it is.
    """
    file = path(home, line)
    # A folder takes no other's place.
    aside = file.with_suffix(f".{secrets.token_hex(4)}.bad" if file.is_dir() else ".bad")
    try:
        os.replace(file, aside)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _stuck(file, error) from error
    return aside


def withdraw(home: Path, line: str) -> None:
    """Make the state the backup, so that there is none: what is left to do where the next one cannot be written.

    It takes no room on a disk that is full. Whoever looks next finds a rollout without a state, which gets no traffic.

    Raises:
        OutsideError: code `cannot_write`; the state is what it was.
    """
    file = path(home, line)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.replace(file, file.with_suffix(".bak"))
        discard(home, line)
    except OSError as error:
        raise _stuck(file, error) from error


def _stuck(file: Path, error: OSError) -> OutsideError:
    return OutsideError(
        f"the state of a rollout can be moved out of the way, but {error.strerror or error}",
        code="cannot_write", where=f"{FOLDER}/{file.name}", cure="see who may write $ESTEIRA_HOME, then try again",
    )  # fmt: skip


def encode(state: Rollout) -> bytes:
    """The state as a JSON document."""
    return _bytes(
        {
            "schema": SCHEMA,
            **{name: getattr(state, name) for name in (*_TEXTS, *_COUNTS, "status", "percent", "paused_seconds")},
            **{name: _iso(getattr(state, name)) for name in ("started_at", "stage_at", *_WHEN)},
            "champion": side_dict(state.champion),
            "challenger": side_dict(state.challenger),
            "options": dict(state.options),
            "sums": {
                str(stage): {arm: sums.to_dict() for arm, sums in sorted(arms.items())}
                for stage, arms in sorted(state.sums.items())
            },
            "history": [dict(entry) for entry in state.history],
        }
    )


def decode(data: bytes, line: str) -> Rollout:
    """What `encode` wrote.

    Args:
        line: whose state it has to be.

    Raises:
        Refused: code `bad_rollout_state`; the message says what does not hold.
    """
    try:
        said = json.loads(data, object_pairs_hook=_once, parse_constant=_no_constant)
        if not isinstance(said, dict):
            raise ValueError("it must be a JSON object")
        if type(said.get("schema")) is not int or said["schema"] != SCHEMA:
            raise ValueError(f"its schema must be {SCHEMA}, but is {str(said.get('schema'))[:50]}")
        return _state(said, line)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise Refused(
            f"the state of a rollout is what this code wrote, but {reason[:200]}",
            code="bad_rollout_state",
            where=f"rollouts/{line}.json",
            cure="`esteira rollout tick LINE` takes all traffic from the candidate and ends the rollout; the file is kept as .bad",
        ) from error


_WHEN = ("paused_at", "looked_at", "judged_at", "cooldown_until")


def _state(said: Mapping[str, Any], line: str) -> Rollout:
    if set(said) != _FIELDS:
        raise ValueError(f"{', '.join(sorted(map(str, _FIELDS ^ set(said))))[:150]} is missing or unknown")
    for name in _TEXTS:
        if not isinstance(said[name], str):
            raise ValueError(f"{name} must be a text")
    for name in _COUNTS:
        if type(said[name]) is not int or said[name] < 0:
            raise ValueError(f"{name} must be a count, but is {str(said[name])[:50]}")
    if said["line"] != line:
        raise ValueError(f"its line must be {line}, but is {said['line'][:100]}")
    if said["status"] not in _STATUSES:
        raise ValueError(f"status must be one of {', '.join(_STATUSES)}, but is {str(said['status'])[:50]}")
    if not isinstance(said["options"], dict) or not isinstance(said["history"], list):
        raise ValueError("options must be an object and history a list")
    if not all(isinstance(entry, dict) for entry in said["history"]):
        raise ValueError("history must hold objects")
    as_said: dict[str, Any] = {name: said[name] for name in (*_TEXTS, *_COUNTS, "status", "options")}
    when: dict[str, Any] = {name: None if said[name] is None else _moment(said[name]) for name in _WHEN}
    return Rollout(
        **as_said,
        **when,
        champion=side_of(said["champion"]),
        challenger=side_of(said["challenger"]),
        percent=_number(said["percent"], "percent", 100.0),
        paused_seconds=_number(said["paused_seconds"], "paused_seconds", math.inf),
        started_at=_moment(said["started_at"]),
        stage_at=_moment(said["stage_at"]),
        sums={int(stage): _arms(arms) for stage, arms in said["sums"].items()},
        history=tuple(said["history"]),
    )


def _arms(said: Mapping[str, Any]) -> dict[ArmName, Sums]:
    if not set(said) <= set(_ARMS):
        raise ValueError(f"an arm is one of {', '.join(_ARMS)}")
    return {arm: Sums.from_dict(said[arm]) for arm in get_args(ArmName) if arm in said}


def _number(value: Any, name: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or math.isinf(value):
        raise ValueError(f"{name} must lie in 0 to {most:g}, but is {str(value)[:50]}")
    return float(value)


def _moment(text: Any) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("a time must say its zone")
    return found.astimezone(UTC)


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat()


def _bytes(document: Any) -> bytes:
    return (json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1, sort_keys=True) + "\n").encode("utf-8")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _next(home: Path, line: str) -> Path:
    return path(home, line).with_suffix(".next")


def _read(file: Path, line: str) -> Rollout | None:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(
            f"the state of a rollout can be read, but {error.strerror}",
            code="bad_rollout_state",
            where=f"{FOLDER}/{file.name}",
            cure="`esteira rollout tick LINE` takes all traffic from the candidate and ends the rollout; the file is kept as .bad",
        ) from error
    return decode(data, line)


def _back_up(home: Path, line: str) -> None:
    """Keep the state as it is as the last good one; a state that cannot be read never replaces a good backup."""
    try:
        data = path(home, line).read_bytes()
        decode(data, line)
    except (OSError, Refused):
        return
    outputs.write(home / FOLDER, {path(home, line).with_suffix(".bak").name: data})
