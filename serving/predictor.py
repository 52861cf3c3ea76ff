"""Loaded models and what each line serves now. A model is loaded once, kept in a bounded cache, never loaded per request.

Knows bundles, lines and versions; knows nothing of HTTP, Bento or the records of predictions.
"""

import gc
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from esteira.errors import EsteiraError, Refused
from esteira.family import Answer, Answerer, Finding, Row

_WARM_UP_ROWS = 20


@dataclass(frozen=True)
class Deployment:
    """A version that may serve.

    Attributes:
        line: `FAMILY` or `FAMILY@NAME`.
        version: the registry's number; None for a bundle that is not registered.
        bundle_id: SHA-256 of the bundle's manifest.
    """

    line: str
    version: int | None
    bundle_id: str


class Predictor:
    """One open model: answers rows and says who it is. Safe to call from several threads.

    Args:
        deployment: what this is.
        answerer: the family's answerer over the open bundle.
        manifest: the bundle's manifest.
        device: `cpu` or `cuda`.
    """

    def __init__(self, deployment: Deployment, answerer: Answerer, manifest: Mapping[str, Any], device: str) -> None:
        self.deployment = deployment
        self.manifest = manifest
        self.device = device
        self.check: Callable[[Sequence[Row]], list[Finding]] = answerer.check
        self._answer = answerer.answer
        model = manifest.get("model") or {}
        self.envelope: dict[str, Any] = {
            "line": deployment.line,
            "version": deployment.version,
            "bundle_id": deployment.bundle_id,
            "model_id": deployment.bundle_id,
            "device": device,
            "method": manifest.get("method") or model.get("kind") or manifest.get("artefact_kind"),
            "simulated": bool(manifest.get("simulated", False)),
            "confidence_kind": manifest.get("confidence_kind", "heuristic"),
        }

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        """One answer a row, in order, for rows that `check` found no error in."""
        answers = self._answer(rows)
        if len(answers) != len(rows):
            raise RuntimeError(f"{len(rows)} rows must give as many answers, but the model gave {len(answers)}")
        return answers

    def describe(self) -> dict[str, Any]:
        """What `/v1/{line}/model` says: identity, contract, units, metrics, lineage, device."""
        said = {
            key: self.manifest.get(key)
            for key in (
                "family", "artefact_kind", "task", "schema", "units", "metrics", "baseline", "data_hash", "code_revision",
                "params_hash", "seed", "dependencies",
            )
        }  # fmt: skip
        return {**self.envelope, **said}


def load(folder: Path, deployment: Deployment, device: str = "auto") -> Predictor:
    """Verify and open a bundle, and warm it up with its own golden rows.

    Raises:
        Refused: the bundle is not what its identity says.
        ConfigError: the device is not there.
    """
    from esteira import bundle

    opened = bundle.open_bundle(folder, device=device, bundle_id=deployment.bundle_id or None)
    answerer = bundle.answerer(opened)
    found = Deployment(deployment.line or str(opened.manifest.get("line", "")), deployment.version, opened.bundle_id)
    predictor = Predictor(found, answerer, opened.manifest, opened.device)
    try:
        rows = json.loads(opened.read("golden.json"))["rows"][:_WARM_UP_ROWS]
    except (KeyError, EsteiraError):
        rows = []
    if rows:
        predictor.answer(rows)
        predictor.answer(rows[:1])
    return predictor


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
            finally:
                with self._lock:
                    self._loading.pop(deployment, None)
            with self._lock:
                self._loaded[deployment] = predictor
                while len(self._loaded) > self.capacity:
                    self._loaded.popitem(last=False)
        return predictor

    def drop(self, deployment: Deployment) -> None:
        """Forget a predictor; requests in flight keep theirs."""
        with self._lock:
            self._loaded.pop(deployment, None)

    def __len__(self) -> int:
        return len(self._loaded)


class Source(Protocol):
    """Where deployments come from: one folder, or the registry."""

    @property
    def lines(self) -> Sequence[str]:
        """What may be asked for."""
        ...

    @property
    def moves(self) -> bool:
        """Whether an alias may move while it serves."""
        ...

    def current(self, line: str) -> Deployment | None:
        """What the line serves now by its alias; None when nothing is released."""
        ...

    def version(self, line: str, number: int) -> Deployment | None:
        """That version of the line, released or not; None when there is none."""
        ...

    def folder(self, deployment: Deployment) -> Path:
        """A local folder with the deployment's bundle."""
        ...


class Folder:
    """One bundle folder; it never moves.

    Raises:
        Refused: the folder is not the bundle it says it is.
    """

    moves = False

    def __init__(
        self, folder: Path, *, line: str = "", version: int | None = None, bundle_id: str | None = None
    ) -> None:
        from esteira import bundle

        manifest = bundle.verify(folder, bundle_id)
        identity = (folder / "manifest.sha256").read_text(encoding="utf-8").split()[0]
        self._deployment = Deployment(line or str(manifest["line"]), version, identity)
        self._folder = folder
        self.lines = (self._deployment.line,)

    def current(self, line: str) -> Deployment | None:
        return self._deployment if line == self._deployment.line else None

    def version(self, line: str, number: int) -> Deployment | None:
        deployment = self.current(line)
        return deployment if deployment and deployment.version == number else None

    def folder(self, deployment: Deployment) -> Path:
        return self._folder


class FromRegistry:
    """The champions of some lines, by the registry. Safe to call from several threads."""

    moves = True

    def __init__(self, registry: Any, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        self._registry = registry
        self._lock = threading.Lock()

    def current(self, line: str) -> Deployment | None:
        with self._lock:
            return _deployment(self._registry.resolve(line))

    def version(self, line: str, number: int) -> Deployment | None:
        with self._lock:
            version = self._registry.get(line, number)
        return None if version is None or version.state == "failed" else _deployment(version)

    def folder(self, deployment: Deployment) -> Path:
        with self._lock:
            version = self._registry.get(deployment.line, deployment.version)
            folder: Path = self._registry.fetch(version)
        return folder


def _deployment(version: Any) -> Deployment | None:
    return None if version is None else Deployment(version.line, int(version.version), version.bundle_id)


def _ignore(*_: object) -> None:
    """Told, and does nothing."""


class Deployed:
    """What each line serves now. Readers never wait: a move loads the new model first, then swaps one reference.

    Args:
        source: where deployments come from.
        capacity: how many models stay loaded.
        device: `auto`, `cpu` or `cuda`.
        report: called with (line, error) when a line cannot follow its alias; the last good model goes on serving.
        moved: called with (old, new) after a line's model changed.
    """

    def __init__(
        self,
        source: Source,
        *,
        capacity: int = 16,
        device: str = "auto",
        report: Callable[[str, Exception], None] = _ignore,
        moved: Callable[[Deployment | None, Deployment | None], None] = _ignore,
    ) -> None:
        self.lines = tuple(source.lines)
        self.cache = PredictorCache(capacity, lambda wanted: load(source.folder(wanted), wanted, device))
        self._source = source
        self._current: dict[str, Deployment] = {}
        self._report = report
        self._moved = moved
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._said: dict[str, str] = {}

    @property
    def ready(self) -> bool:
        """True when at least one line has a model; a line without one answers 503 for itself."""
        return bool(self._current)

    @property
    def now(self) -> Mapping[str, Deployment]:
        """Line -> what it serves; a snapshot."""
        return self._current

    def serves(self, line: str, number: int) -> bool:
        """True when that version of the line is deployed now."""
        deployment = self._current.get(line)
        return deployment is not None and deployment.version == number

    def loaded(self, line: str) -> Predictor | None:
        """The line's predictor if it is in the cache: the fast path."""
        deployment = self._current.get(line)
        return None if deployment is None else self.cache.peek(deployment)

    def predictor(self, line: str, number: int | None = None) -> Predictor | None:
        """The line's predictor, loaded if it was evicted; of version `number` when given. May read files and the registry.

        Returns:
            None when nothing is released, or there is no such version.
        """
        deployment = self._current.get(line)
        if number is not None and not self.serves(line, number):
            deployment = self._source.version(line, number)
        return None if deployment is None else self.cache.get(deployment)

    def start(self, period: float = 1.0) -> None:
        """Load what is released now, and follow the aliases every `period` seconds if the source moves.

        A line without a release is only not ready; one that cannot be loaded is reported.

        Raises:
            EsteiraError: nothing could be loaded, and this is why.
        """
        refused: EsteiraError | None = None
        for line in self.lines:
            try:
                self._follow(line)
            except EsteiraError as error:
                refused = refused or error
                self._said[line] = str(error)
                self._report(line, error)
        if refused is not None and not self._current:
            raise refused
        gc.collect()
        gc.freeze()
        if self._source.moves:
            self._thread = threading.Thread(target=self._run, args=(period,), name="follow-aliases", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _follow(self, line: str) -> None:
        wanted = self._source.current(line)
        served = self._current.get(line)
        if wanted == served:
            return
        if wanted is not None:
            self.cache.get(wanted)
            self._current = {**self._current, line: wanted}
        else:
            self._current = {name: kept for name, kept in self._current.items() if name != line}
        self._moved(served, wanted)
        if served is not None:
            self.cache.drop(served)

    def _run(self, period: float) -> None:
        while not self._stop.wait(period):
            for line in self.lines:
                try:
                    self._follow(line)
                    self._said.pop(line, None)
                except Exception as error:  # noqa: BLE001 - a follower that ended would freeze the line unseen
                    # The last good model goes on; the same trouble is told once, not every second.
                    if self._said.get(line) != str(error):
                        self._said[line] = str(error)
                        self._report(line, error)


def no_champion(line: str) -> Refused:
    """The letter for a line that has nothing to serve."""
    return Refused(
        f"only a released line serves, but {line} has no champion",
        code="no_champion",
        where=line,
        cure=f"`esteira run {line}` trains and releases one; `esteira lines` shows what is there",
    )
