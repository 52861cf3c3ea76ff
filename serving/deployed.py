"""What each line serves now. A model is loaded once, kept in a bounded cache, never loaded per request; a move loads beside.

Knows lines and their versions; knows nothing of HTTP, Bento or the records of predictions.
"""

import gc
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from esteira.errors import EsteiraError, OutsideError, Refused
from serving import predictor as predictors
from serving.deployments import Deployment, Source
from serving.predictor import Predictor

# The longest pauses between two tries: of an alias that cannot be read, and of a version that cannot be loaded.
_ASK_AGAIN, _LOAD_AGAIN = 5.0, 60.0
# Seconds after which a source that has not answered counts as away.
_SILENT = 5.0
# Seconds between two looks at the beacon.
_GLANCE = 0.05


class PredictorCache:
    """Loaded predictors, at most `capacity`; the least recently used one goes first. Loads each key once at a time."""

    def __init__(self, capacity: int, loader: Callable[[Deployment], Predictor]) -> None:
        self.capacity = max(1, capacity)
        self._loader = loader
        self._loaded: OrderedDict[Deployment, Predictor] = OrderedDict()
        self._lock = threading.Lock()
        self._loading: dict[Deployment, threading.Lock] = {}

    def peek(self, deployment: Deployment) -> Predictor | None:
        """The predictor if it is loaded; counts as a use, never loads."""
        with self._lock:
            predictor = self._loaded.get(deployment)
            if predictor is not None:
                self._loaded.move_to_end(deployment)
            return predictor

    def get(self, deployment: Deployment) -> Predictor:
        """The predictor, loaded if need be.

        Raises:
            EsteiraError: what the loader raises; nothing is cached then.
        """
        predictor = self.peek(deployment)
        if predictor is not None:
            return predictor
        with self._lock:
            gate = self._loading.setdefault(deployment, threading.Lock())
        with gate:
            predictor = self.peek(deployment)
            if predictor is not None:
                return predictor
            try:
                predictor = self._loader(deployment)
            except BaseException:
                with self._lock:
                    self._loading.pop(deployment, None)
                raise
            with self._lock:
                # Together, or who comes in between would load it again.
                self._loading.pop(deployment, None)
                self._loaded[deployment] = predictor
                while len(self._loaded) > self.capacity:
                    self._loaded.popitem(last=False)
        return predictor

    def put(self, predictor: Predictor) -> None:
        """Take one that is loaded already."""
        with self._lock:
            self._loaded[predictor.deployment] = predictor
            while len(self._loaded) > self.capacity:
                self._loaded.popitem(last=False)

    def drop(self, deployment: Deployment) -> None:
        """Forget a predictor; requests in flight keep theirs."""
        with self._lock:
            self._loaded.pop(deployment, None)

    def deployments(self) -> list[Deployment]:
        """What is loaded, the least recently used one first."""
        with self._lock:
            return list(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)


def _ignore(*_: object) -> None:
    """Told, and does nothing."""


@dataclass(frozen=True)
class _Trouble:
    """Why a line is not where its alias points. Holds no exception: its frames would keep the failed model in memory.

    Attributes:
        wanted: what cannot be loaded; None when the alias itself could not be read.
        code: of the failure.
        said: the failure in words.
        tries: how often, in a row.
        again: when it is tried again, by the monotonic clock.
    """

    wanted: Deployment | None
    code: str
    said: str
    tries: int
    again: float


class Deployed:
    """What each line serves now. Readers never wait: a move loads the new model first, then swaps one reference.

    Args:
        source: where deployments come from.
        capacity: how many models stay loaded.
        device: `auto`, `cpu` or `cuda`.
        report: called with (line, error) when a line cannot follow its alias; the last good model goes on serving.
        moved: called with (old, new) after a line's model changed.
        keep: seconds that the last model of a line which no longer serves stays loaded, so that the way back costs no loading.
        beacon: gives a number that changes when an alias moves; looked at twenty times a second, and followed at once.
    """

    def __init__(
        self,
        source: Source,
        *,
        capacity: int = 16,
        device: str = "auto",
        report: Callable[[str, Exception], None] = _ignore,
        moved: Callable[[Deployment | None, Deployment | None], None] = _ignore,
        keep: float = 0.0,
        beacon: Callable[[], int] | None = None,
    ) -> None:
        self.lines = tuple(source.lines)
        self.cache = PredictorCache(capacity, self._load)
        self._source = source
        self._device = device
        self._current: dict[str, Deployment] = {}
        # Where all lines have room, a request takes its model from here: one look, and no other line's move evicts it.
        self._held: dict[str, Predictor] = {}
        self._holds = len(self.lines) <= self.cache.capacity
        self._report = report
        self._moved = moved
        self._keep = keep
        # Line -> what served before, and until when it is kept.
        self._kept: dict[str, tuple[Predictor, float]] = {}
        self._keeping = threading.Lock()
        self._beacon = beacon
        self._seen = 0  # of the beacon
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._period = 1.0
        self._troubles: dict[str, _Trouble] = {}
        self._empty: frozenset[str] = frozenset()  # lines without a release, when their alias was read last
        # When the source was asked something that it has not answered yet; and whether its last answer was a failure.
        self._asked: float | None = None
        self._silent = False

    @property
    def ready(self) -> bool:
        """True when at least one line has a model; a line without one answers 503 for itself."""
        return bool(self._current)

    @property
    def complete(self) -> bool:
        """True when every line that has a release serves: its own, or the last good one while a newer cannot be loaded.

        A line whose alias cannot be read is as it was when it was read last.
        """
        return all(line in self._current or line in self._empty for line in self._troubles)

    @property
    def away(self) -> bool:
        """True while the source does not say where the aliases point: it failed when it was asked last, or has not answered for long."""
        asked = self._asked
        return self._silent or (asked is not None and time.monotonic() - asked > _SILENT)

    @property
    def now(self) -> Mapping[str, Deployment]:
        """Line -> what it serves; a snapshot."""
        return self._current

    @property
    def models(self) -> int:
        """Models in memory."""
        held = [*self._held.values(), *(kept[0] for kept in self._kept.values())]
        return len({*(predictor.deployment for predictor in held), *self.cache.deployments()})

    def states(self) -> dict[str, dict[str, Any]]:
        """Line -> `{"state": "ready" | "failed" | "none", "version", "why"}`; no exception's words.

        `failed` is a line whose release could not be loaded; `version` is what serves meanwhile, if anything does, and `why`
        the failure's code. `none` has no release, or had none when its alias was read last.
        """
        said = {}
        for line in self.lines:
            served, trouble = self._current.get(line), self._troubles.get(line)
            failed = trouble is not None and (
                trouble.wanted is not None or (served is None and line not in self._empty)
            )
            said[line] = {
                "state": "failed" if failed else "none" if served is None else "ready",
                "version": None if served is None else served.version,
                "why": None if trouble is None else trouble.code,
            }
        return said

    def serves(self, line: str, number: int) -> bool:
        """True when that version of the line is deployed now."""
        deployment = self._current.get(line)
        return deployment is not None and deployment.version == number

    def loaded(self, line: str, number: int | None = None) -> Predictor | None:
        """The line's predictor if it is in memory, and of version `number` when given: the fast path."""
        held = self._held.get(line)
        if held is not None and (number is None or held.deployment.version == number):
            return held
        deployment = self._current.get(line)
        if deployment is None or (number is not None and deployment.version != number):
            return None
        return self.cache.peek(deployment)

    def predictor(self, line: str, number: int | None = None) -> Predictor | None:
        """The line's predictor, loaded if it was evicted; of version `number` when given. May read files and the registry.

        Returns:
            None when nothing is released, or there is no such version.
        """
        found = self.loaded(line, number)
        if found is not None:
            return found
        if number is not None:
            asked = self._current.get(line)
            if asked is None or asked.version != number:
                asked = self._source.version(line, number)
            return None if asked is None else self.cache.get(asked)
        while (deployment := self._current.get(line)) is not None:
            found = self.cache.get(deployment)
            if self._current.get(line) == deployment:
                return found
            # It moved while we loaded; what was moved away must not come back into memory.
            self.cache.drop(deployment)
        return None

    def start(self, period: float = 1.0) -> None:
        """Load what is released now, and follow the aliases every `period` seconds if the source moves.

        A line without a release is only not ready; one that cannot be loaded is reported, and tried again.

        Raises:
            EsteiraError: nothing could be loaded, and this is why.
        """
        self._period = period
        if self._beacon is not None:
            self._seen = self._beacon()  # before the aliases are read: what moves meanwhile is followed again
        refused = [error for line in self.lines if (error := self._try_to_follow(line)) is not None]
        if refused and not self._current:
            raise refused[0]
        gc.collect()
        gc.freeze()
        if self._source.moves:
            self._thread = threading.Thread(target=self._run, name="follow-aliases", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def beside(self, line: str, number: int, bundle_id: str) -> Predictor:
        """A version that need not serve, loaded beside the one that does; give it to `let_go` when it is needed no more.

        Raises:
            EsteiraError: it cannot be loaded; code `unknown_version` where the source has no such version of that bundle.
        """
        asked = self._source.version(line, number)
        if asked is None or asked.bundle_id != bundle_id:
            raise Refused(
                f"a version is known by its number and bundle, but {line} has no version {number} of {bundle_id[:12]}",
                code="unknown_version",
                where=line,
                cure="see `esteira release ls` for what there is",
            )
        return self._again(asked)

    def let_go(self, predictor: Predictor) -> None:
        """Hold a version that was loaded `beside` no longer; it stays if it serves by now."""
        deployment = predictor.deployment
        if self._current.get(deployment.line) != deployment:
            self._retire(deployment, predictor)

    def _again(self, wanted: Deployment) -> Predictor:
        """A predictor: the one that was kept, or loaded."""
        with self._keeping:
            kept = self._kept.get(wanted.line)
            if kept is not None and kept[0].deployment == wanted:
                del self._kept[wanted.line]
            else:
                kept = None
        if kept is None:
            return self.cache.get(wanted)
        self.cache.put(kept[0])
        return kept[0]

    def _retire(self, deployment: Deployment, predictor: Predictor | None) -> None:
        """Forget what serves no longer, now or after a while."""
        self.cache.drop(deployment)
        if predictor is not None and self._keep > 0:
            with self._keeping:
                self._kept[deployment.line] = (predictor, time.monotonic() + self._keep)

    def _forget(self) -> None:
        """Drop what was kept for long enough."""
        if self._kept:
            now = time.monotonic()
            with self._keeping:
                for line in [line for line, kept in self._kept.items() if kept[1] <= now]:
                    del self._kept[line]

    def _run(self) -> None:
        beacon = self._beacon
        pause = self._period if beacon is None else min(self._period, _GLANCE)
        due = time.monotonic() + self._period
        while not self._stop.wait(pause):
            now = time.monotonic()
            if beacon is not None:
                stamp = beacon()
                if stamp == self._seen and now < due:
                    continue
                self._seen = stamp
            due = now + self._period
            for line in self.lines:
                self._try_to_follow(line)
            self._forget()

    def _try_to_follow(self, line: str) -> Exception | None:
        """Follow one line's alias; a failure leaves the last good model, and is tried again after a growing pause."""
        before = self._troubles.get(line)
        wanted: Deployment | None = None
        try:
            if before is not None and before.wanted is None and time.monotonic() < before.again:
                return None
            self._asked = time.monotonic()
            wanted = self._source.current(line)
            self._asked, self._silent = None, False
            self._empty = self._empty | {line} if wanted is None else self._empty - {line}
            if before is not None and before.wanted == wanted is not None and time.monotonic() < before.again:
                return None
            self._follow(line, wanted)
            if before is not None:
                self._troubles = {name: kept for name, kept in self._troubles.items() if name != line}
        except Exception as error:  # noqa: BLE001 - a follower that ended would freeze the line unseen
            if self._asked is not None:
                self._asked, self._silent = None, True
            tries = before.tries + 1 if before is not None and before.wanted == wanted else 1
            longest = _ASK_AGAIN if wanted is None else _LOAD_AGAIN
            pause = max(self._period, min(self._period * 2.0 ** min(tries, 30), longest))
            code = error.code if isinstance(error, EsteiraError) else "internal"
            trouble = _Trouble(wanted, code, str(error), tries, time.monotonic() + pause)
            self._troubles = {**self._troubles, line: trouble}
            # The same trouble is told once, not at every try.
            if before is None or before.said != trouble.said:
                self._report(line, error)
            return error
        return None

    def _follow(self, line: str, wanted: Deployment | None) -> None:
        served = self._current.get(line)
        if wanted == served:
            return
        old = self._held.get(line)
        if wanted is not None:
            # Beside the one that serves; requests go on with that until the new one has answered its golden rows.
            predictor = self._again(wanted)
            if self._holds:
                self._held = {**self._held, line: predictor}
            self._current = {**self._current, line: wanted}
        else:
            self._held = {name: kept for name, kept in self._held.items() if name != line}
            self._current = {name: kept for name, kept in self._current.items() if name != line}
        if served is not None:
            self._retire(served, old)
        self._moved(served, wanted)

    def _load(self, wanted: Deployment) -> Predictor:
        try:
            return predictors.load(self._source.folder(wanted), wanted, self._device)
        except MemoryError as error:
            with self._keeping:
                self._kept.clear()
            raise OutsideError(
                "a new model is loaded beside the one that serves, but there is no memory for both",
                code="out_of_memory",
                where=wanted.line,
                cure="give the service more memory, or release a smaller model; it is tried again",
            ) from error
