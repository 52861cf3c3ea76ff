"""The registry: versions of a line, what each came from, and which of them serves. Reading it imports no MLflow.

The platform store and its ledger are the truth. A version is written to MLflow first, which gives it its number, then with its
ledger entries in one transaction; an alias moves in the store together with its entry, then MLflow is made to show the same.
A move that was cut off after its transaction holds, and is shown by MLflow at the next write of that line. What takes a version
into production or out of it waits for no MLflow: its transaction comes first, and followers on this machine hear of it at once.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esteira import access, crash, ledger, locks
from esteira import bundle as bundles
from esteira.access import Actor
from esteira.card import card_missing
from esteira.errors import ConfigError, EsteiraError, NotFound, OutsideError, Refused
from esteira.family import Line
from esteira.registry import artefacts, beacon, catalogue, moves
from esteira.registry.catalogue import Page
from esteira.registry.moves import RolledBack
from esteira.release import approvals
from esteira.release.lifecycle import State, require_move
from esteira.settings import Settings
from esteira.store import Store, side_by_side
from esteira.store.records import Approval, Version
from esteira.store.releases import Releases
from esteira.store.store import flat
from esteira.store.store import now as present

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from esteira.registry.mlflow_mirror import Mirror

ALIASES = ("candidate", "staging", "champion", "production", "challenger", "previous")
"""Names a version may have. `champion` and `production` are one thing, set together; `previous` is set by moving them."""

_DEPLOYED = frozenset({"staging", "champion", "production", "challenger"})
_WAIT_SECONDS = 300.0

_log = logging.getLogger("esteira.registry")


class Registry:
    """Versions and aliases of one tenant's lines.

    Args:
        settings: addresses of store, MLflow and artefacts; the tenant; the actor where a call names none.
        store: an open store to use instead of opening one.
    """

    def __init__(self, settings: Settings, store: Store | None = None) -> None:
        artefacts.check_root(settings.artifacts)
        self._settings = settings
        if store is not None:
            self.__dict__["store"] = store

    def __repr__(self) -> str:
        return f"Registry(tenant={self._settings.tenant!r})"

    @cached_property
    def store(self) -> Store:
        """The platform store, opened at first use."""
        return Store.open(self._settings.database_url, self._settings.tenant)

    # Reading

    def resolve(self, line: str, alias: str = "champion") -> Version | None:
        """The version that an alias of a line points at, or None."""
        return self.store.resolve_alias(line, _known(alias))

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
            raise NotFound(
                f"a version is known by its number, but {line} has no version {version}",
                code="unknown_version",
                where=line,
                cure="see `esteira release ls` for what there is",
            )
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
            line=line, family=family, states=catalogue.states(state), alias=None if alias is None else _known(alias),
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
                return catalogue.public(
                    version, tenant=tenant, aliases=self.aliases(line), now=now or present(), whole=True
                )
        raise NotFound(
            f"a model is known by its id, but there is no model {identity[:64]!r}",
            code="unknown_model",
            where="ID",
            cure="`esteira release ls --json` has the ids",
        )

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

    # Writing

    def register(
        self,
        line: str,
        bundle: Path,
        *,
        run_id: str,
        data_hash: str,
        code_revision: str,
        params_hash: str,
        metrics: Mapping[str, Any],
        verdict: Mapping[str, Any],
        params: Mapping[str, Any] | None = None,
        trials: Sequence[Mapping[str, Any]] = (),
        actor: Actor | str | None = None,
        record: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> Version:
        """Make a bundle the next version of its line, and the line's `candidate`.

        The same bundle of the same run is registered once; asking again gives the version that it has.

        Args:
            line: `FAMILY[@NAME]`, which must be the bundle's own.
            bundle: a sealed folder; it is copied into artefact storage.
            run_id: the run that made it.
            data_hash: SHA-256 of the bytes it was trained on.
            params_hash: SHA-256 of what was asked for.
            metrics: may be nested; numbers only, null where undefined.
            verdict: the document of gate.json; every rule must have passed.
            params: what was asked for; may be nested.
            trials: the leaderboard of the search; each becomes a child run in MLflow.
            actor: who registers; by default the key in the settings, or their actor. A name alone is nobody's key.
            record: more for the entry of the registration, such as the validator's report (H-34).

        Raises:
            Refused: the verdict is not a pass, the card is not complete, the bundle is not what was sealed or of another line,
                or whoever asks may not (code `not_allowed`).
            OutsideError: store, MLflow or storage failed; nothing is registered.
        """
        by = Actor(actor, "local", keyed=False) if isinstance(actor, str) else actor or access.who(self._settings)
        access.require(by, "register", line=line, store=self.store, now=now)
        manifest = bundles.verify(bundle)
        bundle_id = hashlib.sha256((bundle / bundles.MANIFEST).read_bytes()).hexdigest()
        _refuse_other_line(manifest, line)
        _refuse_unpassed(verdict, line, bundle_id)
        _refuse_incomplete(bundle, line)
        with self._locked(f"registering {line}"):
            known = self.store.find_version(line, run_id=run_id, bundle_id=bundle_id)
            if known is not None:
                self._show_aliases(line)
                return known
            tags = {
                "line": line,
                "tenant": self._settings.tenant,
                "run_id": run_id,
                "bundle_id": bundle_id,
                "data_hash": data_hash,
                "code_revision": code_revision,
                "params_hash": params_hash,
                "verdict": "pass",
            }
            number, uri, mlflow_run = self._mirror_version(
                line, bundle, manifest, tags, params=params or {}, metrics=metrics, trials=trials
            )
            crash.point("register.before_row")
            with self.store.begin() as connection:
                self.store.alone(connection)
                evidence = {key: tags[key] for key in ("run_id", "data_hash", "code_revision", "params_hash")}
                common: dict[str, Any] = {
                    "line": line,
                    "version": number,
                    "bundle_id": bundle_id,
                    "actor": by.name,
                    "now": now,
                    "connection": connection,
                }
                ledger.append(self.store, kind="verdict", evidence={"run_id": run_id, **verdict}, **common)
                ledger.append(
                    self.store,
                    kind="registration",
                    evidence={
                        **evidence,
                        "mlflow_run_id": mlflow_run,
                        "uri": uri,
                        "metrics": metrics,
                        "keyed": by.keyed,
                        "role": by.role,
                        **catalogue.record_of(manifest),
                        **(record or {}),
                    },
                    **common,
                )
                self.store.add_version(
                    connection,
                    {
                        "line": line,
                        "version": number,
                        "bundle_id": bundle_id,
                        "uri": uri,
                        "mlflow_run_id": mlflow_run,
                        **evidence,
                        "params": dict(params or {}),
                        "metrics": dict(metrics),
                        "actor": by.name,
                        "state": State.VALIDATED.value,
                        **catalogue.kind_of(manifest),
                    },
                )
                version = self.must(line, number, connection)
                held = self._held(line, connection)
                self._note_move(
                    connection,
                    version,
                    {"candidate": version},
                    held,
                    actor=by.name,
                    reason="registered",
                    at=now or present(),
                )
            beacon.touch(self._settings.home)
            crash.point("register.before_mirror")
            self._show_aliases(line)
        return version

    def set_alias(
        self,
        line: str,
        alias: str,
        version: int,
        *,
        actor: str | None = None,
        reason: str = "",
        now: datetime | None = None,
    ) -> Version:
        """Point an alias at a version. Moving `champion` (or `production`, the same) makes the former one `previous`.

        Nothing happens when it points there already. MLflow shows the move afterwards; if it cannot, the move still holds. Who
        may, and on what a champion stands, is asked by `promote`, by which versions go into production.

        Returns:
            The version as it is now.

        Raises:
            Refused: no such version, or an archived or failed one; code `unknown_version`, `archived`, `failed_version`. A
                champion without a passed report (`no_report`), or one that waits for an approval; a second challenger (H-38,
                code `challenger_running`); a move that the life cycle does not have (`illegal_move`).
            ConfigError: no such alias, or `previous`, which only a move of the champion sets.
        """
        actor = actor or access.who(self._settings).name
        at = now or present()
        alias = {"production": "champion"}.get(_known(alias), alias)
        if alias == "previous":
            raise ConfigError(
                "alias previous follows the champion and is not set by hand",
                code="bad_alias",
                where=line,
                cure="move champion instead",
            )
        with self._locked(f"moving {alias} of {line}"):
            with self.store.begin() as connection:
                self.store.alone(connection)
                wanted = self.must(line, version, connection)
                _refuse_undeployable(wanted)
                held = self._held(line, connection)
                if held.get(alias) != version:
                    if alias == "champion":
                        self._to_champion(connection, wanted, held, actor=actor, reason=reason, at=at)
                    else:
                        self._to_alias(connection, alias, wanted, held, actor=actor, reason=reason, at=at)
                moved = self.must(line, version, connection)
                crash.point("alias.before_commit")
            beacon.touch(self._settings.home)
            crash.point("alias.before_mirror")
            self._show_aliases(line)
        return moved

    def drop_alias(
        self,
        line: str,
        alias: str,
        *,
        actor: Actor,
        reason: str,
        state: str | None = None,
        now: datetime | None = None,
    ) -> bool:
        """Let `challenger` point at nothing: its test ended. False when it did already.

        Args:
            state: what becomes of the version besides: `rolled_back` when the test ended by going back.

        Raises:
            Refused: code `not_allowed`, or `illegal_move` for a state that it cannot have.
            ConfigError: another alias, which a move of the champion or of staging takes along; or no reason.
        """
        if alias != "challenger":
            raise ConfigError(
                f"only a challenger's name is taken away, but got {alias[:50]!r}",
                code="bad_alias", where=line, cure="the other aliases follow registration, staging and promotion",
            )  # fmt: skip
        approvals.require_reason(reason, line)
        access.require(
            actor, "rollout" if access.may(actor, "rollout") else "roll_back", line=line, store=self.store, now=now
        )
        at = now or present()
        with self.store.begin() as connection:
            self.store.alone(connection)
            held = self._held(line, connection)
            if alias not in held:
                return False
            left = self.must(line, held[alias], connection)
            back = state is not None and held.get("champion") != left.version
            gone = [alias, *(_staged(left, held) if back else [])]
            self._note_move(connection, left, {}, held, gone=gone, actor=actor.name, reason=reason, at=at)
            if state is not None and back:
                require_move(line, left.version, left.state, state)
                self.store.set_version_state(connection, line, left.version, state)
                approvals.void(self.store, connection, left, actor=actor.name, reason=f"{state}: {reason}", now=at)
            crash.point("alias.before_commit")
        self._tell(line, always=True)
        return True

    def check_promote(
        self,
        line: str,
        version: int,
        *,
        actor: Actor,
        evidence: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> None:
        """Whether `promote` would go through at this moment; it raises what that would raise, and moves nothing.

        Args:
            evidence: as for `promote`; without it the basis is not asked.
        """
        access.require(actor, "promote", line=line, store=self.store, now=now)
        at = now or present()
        basis = None if evidence is None else moves.basis_of(evidence, line)
        if basis == "override":
            approvals.require_override(self.store, self.must(line, version), actor=actor, now=at)
        with self.store.read() as connection:
            wanted = self.must(line, version, connection)
            if self._held(line, connection).get("champion") != version:
                self._check_champion(connection, wanted, basis=basis, evidence=evidence or {}, at=at)

    def promote(
        self,
        line: str,
        version: int,
        *,
        actor: Actor,
        reason: str,
        evidence: Mapping[str, Any],
        now: datetime | None = None,
    ) -> Version:
        """Make a version the champion: `champion` and `production` point at it together, the former one is `previous`.

        Nothing happens when it is the champion already. The transaction waits for nobody but another one; MLflow shows it
        afterwards.

        Args:
            evidence: on what it stands, for the ledger. It names one of `approval` (True), `test_id` (of a rollout that was
                approved), `override` (a person's words), `policy` (`automatic` or `notify`: the line asks nobody). A version
                for which an approval was asked needs one that counts, whatever else it stands on, unless an approver overrides.

        Returns:
            The version as it is now.

        Raises:
            NotFound: no such version.
            Refused: code `not_allowed`, `no_report`, `no_basis`, `illegal_move`, `archived`, or what
                `esteira.release.approvals.require` raises.
            ConfigError: no reason was given.
        """
        approvals.require_reason(reason, line)
        access.require(actor, "promote", line=line, store=self.store, now=now)
        basis = moves.basis_of(evidence, line)
        at = now or present()
        wanted = self.must(line, version)
        asked = approvals.find(self.store, wanted)
        if basis == "override":
            approvals.require_override(self.store, wanted, actor=actor, now=at)
        elif asked is not None and asked.state == "approved":
            # Reading a bundle takes a while, so it is done before anybody else has to wait.
            approvals.sound(self, wanted, actor=actor, now=at)
        with self.store.begin() as connection:
            self.store.alone(connection)
            wanted = self.must(line, version, connection)
            held = self._held(line, connection)
            if held.get("champion") != version:
                given = self._check_champion(connection, wanted, basis=basis, evidence=evidence, at=at)
                said = {**evidence, "basis": basis, "role": actor.role, "keyed": actor.keyed}
                if given is not None:
                    said |= {"approval_entry": given.ledger_seq, "approver": given.approver}
                    approvals.use(self.store, connection, given)
                else:
                    approvals.void(
                        self.store, connection, wanted, actor=actor.name, reason=f"overridden: {reason}", now=at
                    )
                self._to_champion(connection, wanted, held, actor=actor.name, reason=reason, at=at, said=said)
            crash.point("promote.before_commit")
        crash.point("promote.before_beacon")
        beacon.touch(self._settings.home)
        crash.point("promote.before_mirror")
        self._show_soon(line)
        promoted = self.get(line, version)
        assert promoted is not None
        return promoted

    def roll_back(
        self,
        line: str,
        *,
        to: int | None = None,
        actor: Actor,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> RolledBack:
        """Return to an earlier champion (H-37). The version that is left is `rolled_back`, and its approval is void.

        It imports nothing heavy before its transaction is kept, and waits for no MLflow.

        Args:
            to: by default the last version that was production and was not itself rolled back, so that two roll backs reach
                the version before the previous one.
            evidence: more for the ledger.

        Raises:
            Refused: code `not_allowed`, `no_champion`, or what `esteira.registry.moves.target_of` raises.
            ConfigError: no reason was given.
        """
        approvals.require_reason(reason, line)
        access.require(actor, "roll_back", line=line, store=self.store, now=now)
        at = now or present()
        releases = Releases(self.store)
        with self.store.begin() as connection:
            self.store.alone(connection)
            held = self._held(line, connection)
            if "champion" not in held:
                raise Refused(
                    f"a roll back leaves a champion, but {line} has none",
                    code="no_champion", where=line, cure=f"esteira release ls {line} shows what there is",
                )  # fmt: skip
            left = self.must(line, held["champion"], connection)

            def version_of(number: int) -> Version | None:
                return self.store.get_version(line, number, connection)

            target = moves.target_of(line, left, to, releases.champions(connection, line), version_of)
            require_move(line, left.version, left.state, State.ROLLED_BACK)
            require_move(line, target.version, target.state, State.PRODUCTION)
            entry = ledger.append(
                self.store,
                kind="rollback",
                line=line,
                version=target.version,
                bundle_id=target.bundle_id,
                actor=actor.name,
                evidence={
                    **(evidence or {}), "from": left.version, "to": target.version, "reason": reason, "role": actor.role,
                    "keyed": actor.keyed,
                },
                now=at,
                connection=connection,
            )  # fmt: skip
            self.store.set_version_state(connection, line, left.version, State.ROLLED_BACK.value)
            self.store.set_version_state(connection, line, target.version, State.PRODUCTION.value)
            releases.stamp_deployed(connection, line, target.version, at)
            approvals.void(self.store, connection, left, actor=actor.name, reason=f"rolled back: {reason}", now=at)
            approvals.void(
                self.store, connection, target, actor=actor.name, reason="it serves again by a roll back", now=at
            )
            # What a further roll back would return to; a version that was rolled back is nobody's previous one.
            before = moves.former_of(releases.champions(connection, line), target.version, version_of)
            to_be = {"champion": target, "production": target, **({} if before is None else {"previous": before})}
            gone = [*(["previous"] if before is None and "previous" in held else []), *_staged(left, held)]
            self._note_move(connection, target, to_be, held, gone=gone, actor=actor.name, reason=reason, at=at)
            crash.point("rollback.before_commit")
        crash.point("rollback.before_beacon")
        beacon.touch(self._settings.home)
        crash.point("rollback.before_mirror")
        self._show_soon(line, always=bool(gone))
        return RolledBack(left.version, target.version, entry.seq)

    def retire(self, line: str, version: int, *, actor: Actor, reason: str, now: datetime | None = None) -> Version:
        """Put a version away, as `archive`, by who may; what was asked or given for it counts no more.

        Raises:
            Refused: code `not_allowed`, `unknown_version`, `deployed`.
            ConfigError: no reason was given.
        """
        approvals.require_reason(reason, line)
        access.require(actor, "retire", line=line, store=self.store, now=now)
        return self.archive(line, version, actor=actor.name, reason=reason, now=now)

    def archive(
        self, line: str, version: int, *, actor: str | None = None, reason: str = "", now: datetime | None = None
    ) -> Version:
        """Put a version away: it stays readable and can be fetched, but no alias may point at it any more.

        Raises:
            Refused: no such version, or it is deployed; code `unknown_version`, `deployed`.
        """
        actor = actor or access.who(self._settings).name
        at = now or present()
        with self._locked(f"archiving version {version} of {line}"):
            with self.store.begin() as connection:
                self.store.alone(connection)
                wanted = self.must(line, version, connection)
                if wanted.archived_at is not None:
                    return wanted
                held = [a.alias for a in self.store.list_aliases(line, connection=connection) if a.version == version]
                if _DEPLOYED.intersection(held):
                    raise Refused(
                        f"a deployed version is not archived, but version {version} is {', '.join(held)}",
                        code="deployed",
                        where=line,
                        cure="move the alias to another version first",
                    )
                ledger.append(
                    self.store,
                    kind="archive",
                    line=line,
                    version=version,
                    bundle_id=wanted.bundle_id,
                    actor=actor,
                    evidence={"reason": reason, "aliases": held},
                    now=at,
                    connection=connection,
                )
                approvals.void(self.store, connection, wanted, actor=actor, reason=f"retired: {reason}", now=at)
                for alias in held:
                    self.store.drop_alias(connection, line, alias)
                self.store.set_version_state(connection, line, version, State.RETIRED.value, archived_at=at)
                archived = self.must(line, version, connection)
            if held:
                beacon.touch(self._settings.home)
                self._show_aliases(line, always=True)
        return archived

    # How

    def _locked(self, what: str) -> Any:
        # One writer: MLflow on SQLite takes no two, and has no compare-and-swap for aliases.
        return locks.hold(self._settings.home, "registry", what=what, wait=_WAIT_SECONDS)

    def _name(self, line: str) -> str:
        """The line's name in MLflow and in storage; other tenants' names have theirs in front."""
        name = Line.parse(line).registered_name
        return name if self._settings.tenant == "default" else f"{self._settings.tenant}.{name}"

    @cached_property
    def _mirror(self) -> "Mirror":
        from esteira.registry.mlflow_mirror import Mirror

        return Mirror(self._settings)

    def _mirror_version(
        self,
        line: str,
        bundle: Path,
        manifest: Mapping[str, Any],
        tags: Mapping[str, str],
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, Any],
        trials: Sequence[Mapping[str, Any]],
    ) -> tuple[int, str, str]:
        """Write run, trials, artefact and version to MLflow: number, address of the bundle, MLflow's run."""
        from esteira.registry.mlflow_mirror import mlmodel

        name = self._name(line)
        mirror = self._mirror
        shown = self._align_numbers(line, name)
        last = max((known.version for known in self.versions(line)), default=0)
        for number in sorted(shown):
            run, source, marked = shown[number]
            if number > last and run and all(marked.get(key) == tags[key] for key in ("run_id", "bundle_id")):
                # A former attempt was cut off just before its row.
                mirror.finish_run(run, "FINISHED", _pointer(name, number))
                return number, artefacts.bundle_uri(source), run
        root = self._settings.artifacts
        location = root if root.startswith("s3://") else artefacts.local_root(root).as_uri()
        experiment, run = mirror.start_run(
            experiment=name,
            location=f"{location.rstrip('/')}/{name}",
            name=tags["run_id"],
            tags={**tags, "mlflow.source.git.commit": tags["code_revision"]},
            params=flat(params),
            metrics=flat(metrics),
        )
        try:
            mirror.log_trials(experiment, run, trials)
            model = artefacts.put(
                bundle,
                tags["bundle_id"],
                root=root,
                name=name,
                run=run,
                mlmodel=mlmodel(manifest, tags["bundle_id"], run),
            )
            crash.point("register.before_version")
            number = mirror.add_version(name, source=model, run=run, tags=tags)
            if number <= last:
                raise OutsideError(
                    f"versions of a line increase, but MLflow gave {number} after {last}",
                    code="registry_out_of_step",
                    where="ESTEIRA_MLFLOW_URI",
                    cure="see that only one Esteira store uses this MLflow, then run again",
                )
            mirror.finish_run(run, "FINISHED", _pointer(name, number))
        except EsteiraError:
            try:
                mirror.finish_run(run, "FAILED")
            except OutsideError as error:
                _log.warning("MLflow run %s stays unfinished: %s", run, error.message)
            raise
        return number, artefacts.bundle_uri(model), run

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

    def _held(self, line: str, connection: "Connection") -> dict[str, int]:
        """Alias -> version, within a transaction."""
        return {alias.alias: alias.version for alias in self.store.list_aliases(line, connection=connection)}

    def _to_alias(
        self,
        connection: "Connection",
        alias: str,
        wanted: Version,
        held: Mapping[str, int],
        *,
        actor: str,
        reason: str,
        at: datetime,
    ) -> None:
        """Move an alias that serves nobody: the rules of staging and of tests."""
        line, number = wanted.line, wanted.version
        if alias == "challenger":
            if alias in held:
                raise Refused(
                    f"a line tests one challenger at a time, but version {held[alias]} is it",
                    code="challenger_running",
                    where=line,
                    cure=f"wait until `esteira rollout status {line}` shows its end, or end it: esteira rollout rollback {line}",
                )
            if held.get("champion") == number:
                raise Refused(
                    f"a challenger is another version than the champion, but version {number} is that",
                    code="same_version", where=line, cure="name another version",
                )  # fmt: skip
        self._note_move(connection, wanted, {alias: wanted}, held, actor=actor, reason=reason, at=at)
        if alias != "staging" or wanted.state == State.PRODUCTION:
            return
        require_move(line, number, wanted.state, State.STAGING)
        if (former := held.get("staging")) is not None:
            moved_on = self.must(line, former, connection)
            if moved_on.state == State.STAGING:
                self.store.set_version_state(connection, line, former, State.VALIDATED.value)
        self.store.set_version_state(connection, line, number, State.STAGING.value)

    def _check_champion(
        self,
        connection: "Connection",
        wanted: Version,
        *,
        basis: str | None,
        evidence: Mapping[str, Any],
        at: datetime,
    ) -> Approval | None:
        """What must hold before a version becomes the champion; gives the approval that it uses up.

        Args:
            basis: None where nobody is asked on what it stands.
        """
        line, number = wanted.line, wanted.version
        _refuse_undeployable(wanted)
        require_move(line, number, wanted.state, State.PRODUCTION)
        releases = Releases(self.store)
        if not moves.reported(releases.entries(connection, line, "verdict"), wanted):
            raise Refused(
                f"a version is promoted on a report whose every rule passed, but the ledger has none of version {number}",
                code="no_report",
                where=line,
                cure=f"esteira run {line} judges and registers a version with its report",
            )
        if basis == "test_id":
            self._refuse_unknown_test(connection, wanted, str(evidence["test_id"]))
        asked = approvals.find(self.store, wanted, connection)
        if basis == "override":
            return None
        if basis == "approval" or asked is not None:
            return approvals.require(self.store, wanted, now=at, connection=connection)
        return None

    def _refuse_unknown_test(self, connection: "Connection", wanted: Version, test_id: str) -> None:
        entries = Releases(self.store).entries(connection, wanted.line, "rollout", "traffic")
        if any((one["version"], one["evidence"].get("test_id")) == (wanted.version, test_id) for one in entries):
            return
        raise Refused(
            f"a promotion stands on a rollout of its version, but the ledger knows no rollout {test_id[:80]!r} of version"
            f" {wanted.version}",
            code="no_basis", where=wanted.line, cure=f"esteira rollout start {wanted.line}",
        )  # fmt: skip

    def _to_champion(
        self,
        connection: "Connection",
        wanted: Version,
        held: Mapping[str, int],
        *,
        actor: str,
        reason: str,
        at: datetime,
        said: Mapping[str, Any] | None = None,
    ) -> None:
        """Champion and production together; the former one becomes previous. Without `said` nobody was asked on what it stands."""
        line = wanted.line
        if said is None:
            given = self._check_champion(connection, wanted, basis=None, evidence={}, at=at)
            if given is not None:
                approvals.use(self.store, connection, given)
        to_be = {"champion": wanted, "production": wanted}
        if "champion" in held:
            former = self.must(line, held["champion"], connection)
            to_be["previous"] = former
            self.store.set_version_state(connection, line, former.version, State.RETIRED.value)
        self._note_move(connection, wanted, to_be, held, actor=actor, reason=reason, at=at, said=said or {})
        self.store.set_version_state(connection, line, wanted.version, State.PRODUCTION.value)
        Releases(self.store).stamp_deployed(connection, line, wanted.version, at)

    def _note_move(
        self,
        connection: "Connection",
        version: Version,
        to_be: Mapping[str, Version],
        held: Mapping[str, int],
        *,
        actor: str,
        reason: str,
        at: datetime,
        gone: Sequence[str] = (),
        said: Mapping[str, Any] | None = None,
    ) -> bool:
        """Write the entry and the rows of an alias move; False when all of it is so already.

        Args:
            to_be: alias -> where it points from now on; the first is what the entry is called by.
            held: alias -> where they point so far.
            gone: aliases that point at nothing from now on.
        """
        changed = {alias: to for alias, to in to_be.items() if held.get(alias) != to.version}
        if not changed and not gone:
            return False
        first = next(iter([*to_be, *gone]))
        after = {alias: to.version for alias, to in to_be.items()}
        entry = ledger.append(
            self.store,
            kind="alias",
            line=version.line,
            version=version.version,
            bundle_id=version.bundle_id,
            actor=actor,
            evidence={
                **(said or {}),
                "alias": first,
                "from": held.get(first),
                "to": after.get(first),
                "reason": reason,
                "moves": {
                    **{alias: [held.get(alias), to.version] for alias, to in changed.items()},
                    **{alias: [held.get(alias), None] for alias in gone},
                },
            },
            now=at,
            connection=connection,
        )
        for alias, to in changed.items():
            self.store.put_alias(
                connection,
                line=version.line,
                alias=alias,
                version=to.version,
                bundle_id=to.bundle_id,
                ledger_seq=entry.seq,
            )
        for alias in gone:
            self.store.drop_alias(connection, version.line, alias)
        return True

    def _tell(self, line: str, *, always: bool = False) -> None:
        """After a move was kept: followers first, MLflow then."""
        beacon.touch(self._settings.home)
        crash.point("alias.before_mirror")
        self._show_soon(line, always=always)

    def _show_soon(self, line: str, *, always: bool = False) -> None:
        """Make MLflow show a move that holds already; whoever writes to it now, and whatever it says, the move is no less so."""
        try:
            with self._locked(f"showing the aliases of {line}"):
                self._show_aliases(line, always=always)
        except Refused as error:
            if error.code != "locked":
                raise
            _log.warning("MLflow does not show the aliases of %s yet: %s", line, error.message)

    def _show_aliases(self, line: str, *, always: bool = False) -> None:
        """Make MLflow show the store's aliases of a line. The store counts, so a failure is told and left for the next time."""
        pending = self.store.list_aliases(line, mirrored=False)
        if not pending and not always:
            return
        try:
            self._align_numbers(line, self._name(line))
            self._mirror.align(self._name(line), self.aliases(line))
        except OutsideError as error:
            _log.warning("MLflow does not show the aliases of %s yet: %s", line, error.message)
            return
        for alias in pending:
            self.store.alias_mirrored(line, alias.alias, alias.version)


def _pointer(name: str, number: int) -> dict[str, str]:
    """Tags by which a run in MLflow, whose children are the trials, names the version that the best of them became."""
    return {"version": str(number), "best_model_id": f"models:/{name}/{number}"}


def _staged(version: Version, held: Mapping[str, int]) -> list[str]:
    """The alias that a version loses when it is rolled back: staging is where it comes back by, if a person takes it up."""
    return ["staging"] if held.get("staging") == version.version else []


def _known(alias: str) -> str:
    if alias not in ALIASES:
        raise ConfigError(
            f"an alias is one of {', '.join(ALIASES)}, but got {alias[:50]!r}",
            code="bad_alias",
            where="ALIAS",
            cure="use one of them",
        )
    return alias


def _refuse_other_line(manifest: Mapping[str, Any], line: str) -> None:
    if manifest["line"] != line:
        raise Refused(
            f"a bundle is registered under its own line, but it is of {manifest['line']} and was given for {line}",
            code="other_line",
            where=line,
            cure=f"register it as {manifest['line']}, or train one for {line}",
        )


def _refuse_unpassed(verdict: Mapping[str, Any], line: str, bundle_id: str) -> None:
    rules = verdict.get("rules")
    rules = rules if isinstance(rules, list) else []
    failed = [str(rule.get("rule")) for rule in rules if not isinstance(rule, dict) or rule.get("outcome") != "PASS"]
    meant = verdict.get("bundle_id", bundle_id)
    if verdict.get("verdict") == "pass" and rules and not failed and meant == bundle_id:
        return
    what = f"{', '.join(failed)[:200]} did not" if failed else f"the verdict is {str(verdict.get('verdict'))[:50]!r}"
    if meant != bundle_id:
        what = f"the verdict is about bundle {str(meant)[:12]}"
    elif not rules:
        what = "there is no rule in it"
    raise Refused(
        f"a version is registered only when every rule of its gate passed, but {what}",
        code="no_verdict",
        where=line,
        cure="see gate.json for the values and bounds; train a better candidate",
    )


def _refuse_incomplete(bundle: Path, line: str) -> None:
    try:
        card = json.loads((bundle / "card.json").read_text(encoding="utf-8"))
        missing = card_missing(card) if isinstance(card, dict) else ["card.json"]
    except (OSError, ValueError):
        missing = ["card.json"]
    if not (bundle / "card.md").is_file():
        missing.append("card.md")
    if missing:
        raise Refused(
            f"a version is registered only with a complete card, but {', '.join(missing)} is missing",
            code="incomplete_card",
            where=line,
            cure="fill in the family's README (or the params of evaluate), then run again",
        )


def _refuse_undeployable(version: Version) -> None:
    if version.archived_at is None and version.state not in {"failed", "training"}:
        return
    archived = version.archived_at is not None
    raise Refused(
        f"an alias points at a version that may serve, but version {version.version} is "
        + ("archived" if archived else version.state),
        code="archived" if archived else "failed_version",
        where=version.line,
        cure="choose another version",
    )
