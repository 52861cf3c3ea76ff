"""What the registry says: versions of a line, what each came from, where its aliases point. Changes nothing, imports no MLflow."""

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esteira.errors import ConfigError, NotFound
from esteira.family import Line
from esteira.registry import artefacts, catalogue, moves
from esteira.registry.catalogue import Page
from esteira.settings import Settings
from esteira.store import Store, side_by_side
from esteira.store.records import Version
from esteira.store.releases import Releases
from esteira.store.store import now as present

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

ALIASES = ("candidate", "staging", "champion", "production", "challenger", "previous")
"""Names a version may have. `champion` and `production` are one thing, set together; `previous` is set by moving them."""


class Reading:
    """What may be asked of one tenant's lines; `esteira.registry.Registry` is the whole of it."""

    def __init__(self, settings: Settings, store: Store | None = None) -> None:
        artefacts.check_root(settings.artifacts)
        self._settings = settings
        if store is not None:
            self.__dict__["store"] = store

    @cached_property
    def store(self) -> Store:
        """The platform store, opened at first use."""
        return Store.open(self._settings.database_url, self._settings.tenant)

    def resolve(self, line: str, alias: str = "champion") -> Version | None:
        """The version that an alias of a line points at, or None."""
        return self.store.resolve_alias(line, known_alias(alias))

    def get(self, line: str, version: int) -> Version | None:
        """One version, archived ones too, or None."""
        return self.store.get_version(line, version)

    def must(self, line: str, version: int, connection: "Connection | None" = None) -> Version:
        """One version.

        Raises:
            NotFound: there is none of that number; code `unknown_version`.
        """
        found = self.store.get_version(line, version, connection)
        if found is None:
            raise moves.unknown_version(line, version)
        return found

    def versions(self, line: str) -> list[Version]:
        """All versions of a line, newest first, archived ones too."""
        return self.store.list_versions(line)

    def lines(self) -> list[str]:
        """Lines that have a version, by name."""
        return self.store.list_lines()

    def aliases(self, line: str) -> dict[str, int]:
        """Alias -> version."""
        return {alias.alias: alias.version for alias in self.store.list_aliases(line)}

    def find(
        self,
        *,
        line: str | None = None,
        family: str | None = None,
        state: str | None = None,
        alias: str | None = None,
        model_type: str | None = None,
        framework: str | None = None,
        limit: int = 50,
        offset: int = 0,
        now: datetime | None = None,
    ) -> Page:
        """Versions by what they are and where they stand, the newest first, without the address of their artefacts (H-36, K-54).

        Args:
            family: of all its lines, as Hive-Mind's specialists are.
            state: ours, or what KRYONIX, FamaChat or Hive-Mind call it (`deployed`, `ACTIVE`, `Production`).
            model_type, framework: such as `classification` and `xgboost` (K-05).
            limit: versions on the page, 1 to 1000.

        Raises:
            ConfigError: a state or an alias that is none, or a page that is none.
        """
        catalogue.require_page(limit, offset)
        total, found = Releases(self.store).versions(
            line=line, family=family, states=catalogue.states(state), alias=None if alias is None else known_alias(alias),
            model_type=model_type, framework=framework, limit=limit, offset=offset,
        )  # fmt: skip
        at, tenant = now or present(), self.store.tenant
        held = {name: self.aliases(name) for name in {version.line for version in found}}
        models = tuple(catalogue.public(one, tenant=tenant, aliases=held[one.line], now=at) for one in found)
        return Page(total, limit, offset, models)

    def model(self, identity: str, *, now: datetime | None = None) -> dict[str, Any]:
        """A version by the id that `find` gives, whole but for the address of its artefact (K-54).

        Raises:
            NotFound: this tenant has no such version, whoever else may have it; code `unknown_model`.
        """
        tenant = self.store.tenant
        for line, number in Releases(self.store).numbers():
            if catalogue.model_id(tenant, line, number) == identity:
                version = self.must(line, number)
                shown = catalogue.public(version, tenant=tenant, aliases=self.aliases(line), now=now or present())
                return {**shown, **catalogue.more(version, self._registered(version), self._training_seconds(version))}
        raise NotFound(
            f"a model is known by its id, but there is no model {identity[:64]!r}",
            code="unknown_model",
            where="ID",
            cure="`esteira release ls --json` has the ids",
        )

    def _registered(self, version: Version) -> Mapping[str, Any]:
        """The evidence of a version's registration; empty where there is no entry."""
        with self.store.read() as connection:
            entry = Releases(self.store).last(connection, version, "registration")
        return {} if entry is None else entry["evidence"]

    def _training_seconds(self, version: Version) -> float | None:
        steps = (step for step in self.store.steps(version.run_id) if (step.name, step.status) == ("train", "ran"))
        return next((step.seconds for step in steps), None)

    def compare(self, line: str, a: int, b: int) -> dict[str, Any]:
        """Two versions side by side.

        Returns:
            `{"versions": [a, b], "data_hash": [..], ..., "params": {dotted key: [in a, in b]}, "metrics": {...}}`.

        Raises:
            Refused: code `unknown_version`.
        """
        left, right = self.must(line, a), self.must(line, b)
        alike = ("bundle_id", "run_id", "data_hash", "code_revision", "params_hash", "state")
        return {
            "versions": [a, b],
            **{name: [getattr(left, name), getattr(right, name)] for name in alike},
            "params": side_by_side(left.params, right.params),
            "metrics": side_by_side(left.metrics, right.metrics),
        }

    def lineage(self, version: Version) -> dict[str, Any]:
        """What a version came from: its code commit, its data, its model and its run, each as far as it is recorded.

        Returns:
            `{"code": {"revision"}, "data": {"hash", "dataset"}, "model": {"bundle_id", "uri"}, "run": {"run_id",
            "mlflow_run_id", "run"}}`; `dataset` and `run` are null where the store has no record of them.
        """
        dataset, run = self.store.get_dataset(version.data_hash), self.store.find_run(version.run_id)
        return {
            "code": {"revision": version.code_revision},
            "data": {"hash": version.data_hash, "dataset": dataset.to_dict() if dataset else None},
            "model": {"bundle_id": version.bundle_id, "uri": version.uri},
            "run": {
                "run_id": version.run_id,
                "mlflow_run_id": version.mlflow_run_id,
                "run": run.to_dict() if run else None,
            },
        }

    def fetch(self, version: Version) -> Path:
        """A folder on this machine that holds exactly this version's bundle.

        Raises:
            Refused: it was changed, or its address lies outside of artefact storage.
            SourceError: it is gone.
            OutsideError: storage cannot be reached.
        """
        return artefacts.fetch(
            version.uri,
            version.bundle_id,
            root=self._settings.artifacts,
            place=f"{self._name(version.line)}/{version.mlflow_run_id}/artifacts/model/bundle",
            home=self._settings.home,
        )

    def _name(self, line: str) -> str:
        """The line's name in MLflow and in storage; other tenants' names have theirs in front."""
        name = Line.parse(line).registered_name
        return name if self._settings.tenant == "default" else f"{self._settings.tenant}.{name}"

    def _held(self, line: str, connection: "Connection") -> Mapping[str, int]:
        """Alias -> version, within a transaction."""
        return {alias.alias: alias.version for alias in self.store.list_aliases(line, connection=connection)}


def known_alias(alias: str) -> str:
    """The alias itself.

    Raises:
        ConfigError: there is none of that name; code `bad_alias`.
    """
    if alias not in ALIASES:
        raise ConfigError(
            f"an alias is one of {', '.join(ALIASES)}, but got {alias[:50]!r}",
            code="bad_alias",
            where="ALIAS",
            cure="use one of them",
        )
    return alias
