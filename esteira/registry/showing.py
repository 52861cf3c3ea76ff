"""MLflow is shown what holds already: numbers and aliases of a line. The store counts; whatever MLflow says, a move is no less so."""

import logging
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING

from esteira import locks
from esteira.errors import EsteiraError
from esteira.registry.reading import Reading
from esteira.settings import Settings
from esteira.store import Store

if TYPE_CHECKING:
    from esteira.registry.mlflow_mirror import Mirror

_WAIT_SECONDS = 300.0
_SHOW_SECONDS = 1.0
"""For the lock, after a move: it holds already, and who waits in silence takes it for failed and goes back once more."""

_log = logging.getLogger("esteira.registry")


class Showing(Reading):
    """A registry with its mirror.

    Args:
        mirror: False for a process that never imports MLflow: what it moves is shown by the next writer that does, and it
            registers nothing.
    """

    def __init__(self, settings: Settings, store: Store | None = None, *, mirror: bool = True) -> None:
        super().__init__(settings, store)
        self._mirrors = mirror

    def _locked(self, what: str, wait: float = _WAIT_SECONDS) -> AbstractContextManager[None]:
        # One writer: MLflow on SQLite takes no two, and has no compare-and-swap for aliases.
        return locks.hold(self._settings.home, "registry", what=what, wait=wait)

    @cached_property
    def _mirror(self) -> "Mirror":
        from esteira.registry.mlflow_mirror import Mirror

        return Mirror(self._settings)

    def _align_numbers(self, line: str, name: str) -> dict[int, tuple[str | None, str, dict[str, str]]]:
        """Where MLflow lost versions that the store has (a new database), show them again, so that numbers go on."""
        shown = self._mirror.versions(name)
        known = {version.version: version for version in self.versions(line)}
        start = max(shown, default=0) + 1
        for number in range(start, max(known, default=0) + 1):
            version = known.get(number)
            tags = {"line": line, "esteira": "gap"}
            if version is not None:
                tags = {key: str(getattr(version, key)) for key in ("line", "run_id", "bundle_id", "data_hash")}
            source = (version or known[max(known)]).uri.removesuffix("/bundle")
            if self._mirror.add_version(name, source=source, run=None, tags=tags) != number:
                break
        return self._mirror.versions(name) if start <= max(known, default=0) else shown

    def _show_soon(self, line: str, *, always: bool = False) -> None:
        """Show a move that holds. It never fails: what it tells of has happened, and who repeats it would do it twice.

        Args:
            always: also where no alias waits to be shown, because one was taken away.
        """
        if not self._mirrors:
            return
        try:
            with self._locked(f"showing the aliases of {line}", _SHOW_SECONDS):
                self._show_aliases(line, always=always)
        except (EsteiraError, OSError) as error:
            self._unshown(line, error)

    def _show_aliases(self, line: str, *, always: bool = False) -> None:
        """The same by who holds the lock. What could not be shown stays marked, and is shown with the line's next move."""
        try:
            pending = self.store.list_aliases(line, mirrored=False)
            if not pending and not always:
                return
            self._align_numbers(line, self._name(line))
            self._mirror.align(self._name(line), self.aliases(line))
            for alias in pending:
                self.store.alias_mirrored(line, alias.alias, alias.version)
        except (EsteiraError, ImportError, OSError) as error:
            # Where a roll back is typed, MLflow may not even be installed.
            self._unshown(line, error)

    def _unshown(self, line: str, error: Exception) -> None:
        _log.warning("MLflow does not show the aliases of %s yet: %s", line, getattr(error, "message", error))
