"""Follows the splits of the lines that are served: who takes part, which share the candidate takes, and its model, loaded beside.

A thread finds a split that appears and loads its candidate; while one is live each request looks at its file, so that a share
that was taken back is taken back for the next request, whatever the thread does. It routes nothing and counts nothing.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from esteira.errors import EsteiraError, OutsideError
from esteira.family import Line, load_family
from esteira.rollout import split as splits
from esteira.rollout.split import Split
from esteira.rollout.sums import ArmName
from serving.deployed import Deployed
from serving.faults import worded
from serving.predictor import Predictor

_log = logging.getLogger("serving")
# Seconds between two looks at the folder of splits, and the longest pause before a candidate that failed is tried again.
_GLANCE, _LOAD_AGAIN = 0.05, 60.0
# Seconds that a service that starts waits for a candidate.
_PATIENCE = 20.0

Stamp = tuple[int, int, int]
UnitOf = Callable[[Mapping[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Live:
    """A split that is live in this process.

    Attributes:
        line: whose.
        split: as the file says.
        stamp: of the file when it was read.
        candidate: loaded; None where it cannot be, or where something before the service splits the traffic.
        arm: that this service answers for where something before it splits the traffic; None where it decides itself.
        bundle_id: what must serve the line now, or the split is of another time.
        named: units that always get the candidate.
        unit_of: the family's name of a row's unit, where it has one.
    """

    line: str
    split: Split
    stamp: Stamp
    candidate: Predictor | None
    arm: ArmName | None
    bundle_id: str
    named: frozenset[str] = frozenset()
    unit_of: UnitOf | None = None


@dataclass
class _Tried:
    """A candidate that could not be loaded: how often in a row, and when it is tried again."""

    bundle_id: str
    tries: int = 0
    again: float = 0.0
    refused: bool = False  # it is the candidate's fault


@dataclass
class _Line:
    """What the thread knows of a line."""

    file: Path
    seen: Stamp | None = None  # of a file that is no split, told once
    held: Predictor | None = None
    tried: _Tried | None = field(default=None)


def _stamp(file: Path) -> Stamp | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - Path.stat takes twice as long, and this is asked for each request
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


class Splits:
    """The live splits of a service's lines.

    Args:
        deployed: what the lines serve; loads candidates.
        home: `$ESTEIRA_HOME`.
        alias: that the service serves. Where the traffic is split before it, a service of `challenger` is the candidate's;
            one of another alias than these takes part in no rollout.
        report: called with (line, error) when a split cannot be followed.

    Attributes:
        live: line -> its split; a request looks here first, and calls `now` where it finds one.
    """

    def __init__(
        self, deployed: Deployed, home: Path, *, alias: str = "champion",
        report: Callable[[str, Exception], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self.live: dict[str, Live] = {}
        self._deployed = deployed
        self._alias = alias
        self._report = report
        self._lines = {line: _Line(splits.path(home, line)) for line in deployed.lines}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow-splits", daemon=True)

    def now(self, live: Live) -> Live | None:
        """The same split as its file says it this moment; None when it is over: nothing goes to the candidate then.

        One os.stat; the file is read where it changed.
        """
        file = self._lines[live.line].file
        stamp = _stamp(file)
        if stamp == live.stamp:
            return live
        split = None if stamp is None else splits.read(file)
        with self._lock:
            if split is None or stamp is None or not _same(live.split, split):
                # Another rollout needs another candidate: the thread makes it live.
                self.live.pop(live.line, None)
                return None
            changed = replace(live, split=split, stamp=stamp, named=_named(split))
            self.live[live.line] = changed
        return changed

    def of(self, line: str) -> Split | None:
        """What the file of a line says this moment, whether this process takes part or not. Reads the file."""
        known = self._lines.get(line)
        return None if known is None else splits.read(known.file)

    def percents(self) -> Mapping[str, float]:
        """Line -> percent that the candidate takes here now, of the lines with a split."""
        return {line: live.split.percent for line, live in list(self.live.items())}

    def start(self) -> None:
        """Make live what is there, and follow. A candidate that cannot be loaded, or takes very long, keeps no service from starting."""
        self._thread.start()
        self._looked.wait(_PATIENCE)

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def look(self) -> None:
        """Look at every line once. Not from two threads at once."""
        for line, known in self._lines.items():
            try:
                self._look(line, known)
            except Exception as error:  # noqa: BLE001 - a follower that ended would freeze the shares unseen
                self._end(line, known)
                if self._failed(known, "", error):
                    self._report(line, error)

    def _run(self) -> None:
        while True:
            self.look()
            self._looked.set()
            if self._stop.wait(_GLANCE):
                return

    def _look(self, line: str, known: _Line) -> None:
        stamp = _stamp(known.file)
        live = self.live.get(line)
        waits = known.tried is not None and time.monotonic() < known.tried.again
        if stamp is None:
            known.seen = known.tried = None
            self._end(line, known)
            return
        if stamp == known.seen or (waits and known.tried is not None and not known.tried.bundle_id):
            return
        if live is not None and live.stamp == stamp and (live.candidate is not None or live.arm is not None or waits):
            return
        split = splits.read(known.file)
        known.seen = stamp if split is None else None
        if split is None:
            self._end(line, known)
            _log.error("the split of line %s cannot be read; its candidate gets no traffic here", line)
            return
        self._make_live(line, known, split, stamp)

    def _make_live(self, line: str, known: _Line, split: Split, stamp: Stamp) -> None:
        arm: ArmName | None = None
        unit_of = _unit_of(line)
        if split.outside or self._alias != "champion":
            if self._alias not in ("champion", "challenger"):
                known.seen = stamp
                return
            arm = "candidate" if self._alias == "challenger" else "control"
        candidate = None
        if arm is None:
            loaded, candidate = self._candidate(line, known, split)
            if not loaded:
                return
        made = Live(
            line, split, stamp, candidate, arm,
            bundle_id=(split.challenger if arm == "candidate" else split.champion).bundle_id,
            named=_named(split), unit_of=unit_of,
        )  # fmt: skip
        with self._lock:
            if _stamp(known.file) != stamp:  # it moved while we loaded; the next look is soon
                return
            self.live[line] = made
        _log.info("line %s: %g %% of its units go to version %d", line, split.percent, split.challenger.version)

    def _candidate(self, line: str, known: _Line, split: Split) -> tuple[bool, Predictor | None]:
        """Whether the split may be live, and the candidate; a candidate that is at fault itself answers no unit, which counts."""
        side = split.challenger
        held, tried = known.held, known.tried
        if held is not None and held.deployment.bundle_id == side.bundle_id:
            return True, held
        if tried is not None and tried.bundle_id == side.bundle_id and time.monotonic() < tried.again:
            return tried.refused, None
        if held is not None:
            self._end(line, known)
        try:
            known.held = self._deployed.beside(line, side.version, side.bundle_id)
            known.tried = None
        except Exception as error:  # noqa: BLE001 - whatever a candidate's bundle raises, the champion goes on
            if self._failed(known, side.bundle_id, error):
                self._report(line, error)
            assert known.tried is not None
            return known.tried.refused, None
        return True, known.held

    def _failed(self, known: _Line, bundle_id: str, error: Exception) -> bool:
        """Note a failure; True when it is to be told, which it is once."""
        before = known.tried if known.tried is not None and known.tried.bundle_id == bundle_id else _Tried(bundle_id)
        tries = before.tries + 1
        # A store that is away, or no memory for two: this service's trouble. All else is the candidate's own.
        refused = bool(bundle_id) and not isinstance(error, OutsideError | OSError)
        known.tried = _Tried(bundle_id, tries, time.monotonic() + min(2.0**tries, _LOAD_AGAIN), refused)
        code = error.code if isinstance(error, EsteiraError) else type(error).__name__
        if tries == 1:
            _log.error("a candidate cannot be loaded (%s): %s", code, worded(error))
        return tries == 1

    def _end(self, line: str, known: _Line) -> None:
        with self._lock:
            self.live.pop(line, None)
        held, known.held = known.held, None
        if held is not None:
            _log.info("line %s: nothing goes to version %s any more", line, held.deployment.version)
            self._deployed.let_go(held)


def _unit_of(line: str) -> UnitOf | None:
    """The family's word for it."""
    found = getattr(load_family(Line.parse(line).family), "unit", None)
    return found if callable(found) else None


def _same(a: Split, b: Split) -> bool:
    """Whether one is a later state of the other."""
    return (a.test_id, a.salt, a.champion, a.challenger, a.outside) == (
        b.test_id,
        b.salt,
        b.champion,
        b.challenger,
        b.outside,
    )


def _named(split: Split) -> frozenset[str]:
    units = split.options.get("units")
    return frozenset(str(unit) for unit in units) if isinstance(units, list | tuple) else frozenset()
