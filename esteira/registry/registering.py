"""Registration: a judged bundle becomes the next version of its line. MLflow first, which gives the number, then entry and row."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esteira import access, crash, ledger
from esteira import bundle as bundles
from esteira.access import Actor
from esteira.card import card_missing
from esteira.errors import EsteiraError, OutsideError, Refused
from esteira.registry import artefacts, beacon, catalogue
from esteira.registry.noting import note_move
from esteira.registry.showing import Showing
from esteira.release.lifecycle import State
from esteira.store.records import Version
from esteira.store.store import flat
from esteira.store.store import now as present

if TYPE_CHECKING:
    from esteira.release.policy import ReleasePolicy

_log = logging.getLogger("esteira.registry")


class Registering(Showing):
    """A registry that takes up versions."""

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
        actor: Actor | None = None,
        policy: "ReleasePolicy | None" = None,
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
            actor: who registers; by default the key in the settings, or their actor.
            policy: how the line is released. It stands in the entry, and whoever promotes the version from wherever is held to
                it; without it the family's word counts.
            record: more for the entry of the registration, such as the validator's report (H-34).
            now: the moment of the entries; by default that of their transaction, whatever they waited for.

        Raises:
            Refused: the verdict is not a pass, the card is not complete, the bundle is not what was sealed or of another line,
                or whoever asks may not (code `not_allowed`); or this registry has no mirror (code `no_mirror`).
            OutsideError: store, MLflow or storage failed; nothing is registered.
        """
        by = actor or access.who(self._settings)
        access.require(by, "register", line=line, store=self.store, now=now)
        self._refuse_unmirrored(line)
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
                at = now or present()
                evidence = {key: tags[key] for key in ("run_id", "data_hash", "code_revision", "params_hash")}
                common: dict[str, Any] = {
                    "line": line,
                    "version": number,
                    "bundle_id": bundle_id,
                    "actor": by.name,
                    "now": at,
                    "connection": connection,
                }
                ledger.append(self.store, kind="verdict", evidence={"run_id": run_id, **verdict, **by.told()}, **common)
                ledger.append(
                    self.store,
                    kind="registration",
                    evidence={
                        **evidence,
                        "mlflow_run_id": mlflow_run,
                        "uri": uri,
                        "metrics": metrics,
                        **catalogue.record_of(manifest),
                        **(record or {}),
                        **({} if policy is None else {"release": policy.model_dump(mode="json")}),
                        **by.told(),
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
                note_move(
                    self.store, connection, version, {"candidate": version}, held, actor=by, reason="registered", at=at
                )
            beacon.touch(self._settings.home)
            crash.point("register.before_mirror")
            self._show_aliases(line)
        return version

    def _refuse_unmirrored(self, line: str) -> None:
        if self._mirrors:
            return
        raise Refused(
            "MLflow gives a version its number, but this process writes nothing to it",
            code="no_mirror", where=line, cure=f"esteira run {line}; or see `esteira step register --help`",
        )  # fmt: skip

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


def _pointer(name: str, number: int) -> dict[str, str]:
    """Tags by which a run in MLflow, whose children are the trials, names the version that the best of them became."""
    return {"version": str(number), "best_model_id": f"models:/{name}/{number}"}


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
