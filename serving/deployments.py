"""Where models to serve come from, and which: one folder, or what an alias of a registry's lines names. Opens no model."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from esteira.errors import Refused


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
    """What an alias of some lines names, by the registry. Safe to call from several threads.

    Args:
        registry: of the lines.
        lines: to serve.
        alias: that is followed.
    """

    moves = True

    def __init__(self, registry: Any, lines: Sequence[str], alias: str = "champion") -> None:
        self.lines = tuple(lines)
        self.alias = alias
        self._registry = registry
        self._lock = threading.Lock()

    def current(self, line: str) -> Deployment | None:
        with self._lock:
            return _deployment(self._registry.resolve(line, self.alias))

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


def no_champion(line: str, alias: str = "champion") -> Refused:
    """The letter for a line that has nothing to serve."""
    if alias != "champion":
        return Refused(
            f"what serves by an alias needs a version of that alias, but {line} has no {alias}",
            code="no_such_alias",
            where=line,
            cure=f"see `esteira release ls {line}`; a rollout has a challenger, a version that waits for approval is staging",
        )
    return Refused(
        f"only a released line serves, but {line} has no champion",
        code="no_champion",
        where=line,
        cure=f"`esteira run {line}` trains and releases one; `esteira lines` shows what is there",
    )
