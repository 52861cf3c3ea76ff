"""The registry: versions of a line, what each came from, and which of them serves. Reading it imports no MLflow.

The platform store and its ledger are the truth. A version is written to MLflow first, which gives it its number, then with its
ledger entries in one transaction; an alias moves in the store together with its entry, then MLflow is made to show the same.
A move that was cut off after its transaction holds, and is shown by MLflow at the next write of that line.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esteira import bundle as bundles
from esteira import crash, ledger, locks
from esteira.card import card_missing
from esteira.errors import ConfigError, EsteiraError, OutsideError, Refused
from esteira.family import Line
from esteira.registry import artefacts
from esteira.settings import Settings
from esteira.store import Store, side_by_side
from esteira.store.records import Version
from esteira.store.store import flat, now

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

    def versions(self, line: str) -> list[Version]:
        """All versions of a line, newest first, archived ones too."""
        return self.store.list_versions(line)

    def lines(self) -> list[str]:
        """Lines that have a version, by name."""
        return self.store.list_lines()

    def aliases(self, line: str) -> dict[str, int]:
        """Alias -> version."""
        return {alias.alias: alias.version for alias in self.store.list_aliases(line)}

    def compare(self, line: str, a: int, b: int) -> dict[str, Any]:
        """Two versions side by side.

        Returns:
            `{"versions": [a, b], "data_hash": [..], ..., "params": {dotted key: [in a, in b]}, "metrics": {...}}`.

        Raises:
            Refused: code `unknown_version`.
        """
        left, right = self._must(line, a), self._must(line, b)
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
        actor: str | None = None,
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
            actor: who registers; the settings' actor by default.

        Raises:
            Refused: the verdict is not a pass, the card is not complete, or the bundle is not what was sealed or of another
                line.
            OutsideError: store, MLflow or storage failed; nothing is registered.
        """
        actor = actor or self._settings.actor
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
                    "actor": actor,
                    "connection": connection,
                }
                ledger.append(self.store, kind="verdict", evidence={"run_id": run_id, **verdict}, **common)
                ledger.append(
                    self.store,
                    kind="registration",
                    evidence={**evidence, "mlflow_run_id": mlflow_run, "uri": uri, "metrics": metrics},
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
                        "actor": actor,
                        "state": "validated",
                    },
                )
                version = self._must(line, number, connection)
                self._move(connection, version, {"candidate": version}, actor=actor, reason="registered")
            crash.point("register.before_mirror")
            self._show_aliases(line)
        return version

    def set_alias(self, line: str, alias: str, version: int, *, actor: str | None = None, reason: str = "") -> Version:
        """Point an alias at a version. Moving `champion` (or `production`, the same) makes the former one `previous`.

        Nothing happens when it points there already. MLflow shows the move afterwards; if it cannot, the move still holds.

        Returns:
            The version as it is now.

        Raises:
            Refused: no such version, or an archived or failed one; code `unknown_version`, `archived`, `failed_version`.
            ConfigError: no such alias, or `previous`, which only a move of the champion sets.
        """
        actor = actor or self._settings.actor
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
                wanted = self._must(line, version, connection)
                _refuse_undeployable(wanted)
                moves = {alias: wanted}
                if alias == "champion":
                    moves["production"] = wanted
                    at = {entry.alias: entry.version for entry in self.store.list_aliases(line, connection=connection)}
                    if "champion" in at and at["champion"] != version:
                        former = self._must(line, at["champion"], connection)
                        moves["previous"] = former
                        self.store.set_version_state(connection, line, former.version, "retired")
                if self._move(connection, wanted, moves, actor=actor, reason=reason):
                    state = {"champion": "production", "staging": "staging"}.get(alias)
                    if state is not None and not (state == "staging" and wanted.state == "production"):
                        self.store.set_version_state(connection, line, version, state)
                moved = self._must(line, version, connection)
                crash.point("alias.before_commit")
            crash.point("alias.before_mirror")
            self._show_aliases(line)
        return moved

    def archive(self, line: str, version: int, *, actor: str | None = None, reason: str = "") -> Version:
        """Put a version away: it stays readable and can be fetched, but no alias may point at it any more.

        Raises:
            Refused: no such version, or it is deployed; code `unknown_version`, `deployed`.
        """
        actor = actor or self._settings.actor
        with self._locked(f"archiving version {version} of {line}"):
            with self.store.begin() as connection:
                self.store.alone(connection)
                wanted = self._must(line, version, connection)
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
                    connection=connection,
                )
                for alias in held:
                    self.store.drop_alias(connection, line, alias)
                self.store.set_version_state(connection, line, version, "retired", archived_at=now())
                archived = self._must(line, version, connection)
            if held:
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

    def _must(self, line: str, version: int, connection: "Connection | None" = None) -> Version:
        found = self.store.get_version(line, version, connection)
        if found is None:
            raise Refused(
                f"a version is known by its number, but {line} has no version {version}",
                code="unknown_version",
                where=line,
                cure="see `esteira release ls` for what there is",
            )
        return found

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

    def _move(
        self, connection: "Connection", version: Version, moves: Mapping[str, Version], *, actor: str, reason: str
    ) -> bool:
        """Write the entry and the rows of an alias move; False when all of it is so already."""
        at = {entry.alias: entry.version for entry in self.store.list_aliases(version.line, connection=connection)}
        changed = {alias: to for alias, to in moves.items() if at.get(alias) != to.version}
        if not changed:
            return False
        first = next(iter(moves))
        entry = ledger.append(
            self.store,
            kind="alias",
            line=version.line,
            version=version.version,
            bundle_id=version.bundle_id,
            actor=actor,
            evidence={
                "alias": first,
                "from": at.get(first),
                "to": version.version,
                "reason": reason,
                "moves": {alias: [at.get(alias), to.version] for alias, to in changed.items()},
            },
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
        return True

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
