"""The registry: versions that say what they came from, aliases that move whole or not at all, bundles that are what they were."""

import hashlib
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from esteira import bundle as bundles
from esteira import ledger
from esteira.access import Actor
from esteira.errors import ConfigError, EsteiraError, OutsideError, Refused, SourceError
from esteira.registry import Registry, Version, artefacts
from esteira.settings import Settings
from esteira.store import Store
from esteira.store import tables as t
from tests.stores import sqlite_template, store, store_url

__all__ = ["sqlite_template", "store", "store_url"]

LINE = "tabular@churn"
ANA = Actor("ana", "local", keyed=False)
BOB = Actor("bob", "admin", keyed=True)
CARD = {
    "purpose": "who leaves",
    "data": {"name": "churn"},
    "metrics": {"segments": [{"segment": "all", "n": 10}]},
    "limits": ["small"],
    "contact": "ana",
    "licence": "MIT",
}
PASS = {"verdict": "pass", "rules": [{"rule": "better", "outcome": "PASS", "value": 0.9, "bound": 0.5, "n": 100}]}
BOARD = [
    {"number": 0, "kind": "xgboost", "params": {"max_depth": 6}, "score": 0.91, "metric": "roc_auc"},
    {"number": 1, "kind": "constant", "params": {}, "score": None},
]


def make_bundle(folder: Path, *, line: str = LINE, text: str = "1", card: dict[str, Any] | None = None) -> Path:
    """A sealed folder that differs by `text`."""
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "decoder.json").write_text(json.dumps({"text": text}), encoding="utf-8")
    (folder / "card.json").write_text(json.dumps(CARD if card is None else card), encoding="utf-8")
    (folder / "card.md").write_text("# Card\n", encoding="utf-8")
    schema = {"columns": [{"name": "age", "kind": "number"}, {"name": "city", "kind": "category"}]}
    bundles.seal(
        folder, manifest={"family": "tabular", "line": line, "stages": ["decode"], "schema": schema, "task": "binary"}
    )
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; making one takes a second."""
    from esteira.registry.mlflow_mirror import Mirror

    home = tmp_path_factory.mktemp("template")
    Mirror(Settings(home=home))
    return home / "mlflow.db"


@pytest.fixture
def settings(tmp_path: Path, template: Path, sqlite_template: Path) -> Settings:
    """A home of its own, on SQLite."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(template, home / "mlflow.db")
    shutil.copy(sqlite_template, home / "esteira.db")
    return Settings(home=home, actor="ana")


@pytest.fixture
def registry(settings: Settings) -> Registry:
    return Registry(settings)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def put(registry: Registry, bundle: Path, **changes: Any) -> Version:
    """Register a bundle; whatever is not said is made up."""
    told: dict[str, Any] = {
        "run_id": f"run-{secrets.token_hex(4)}",
        "data_hash": "da" * 32,
        "code_revision": "c0ffee",
        "params_hash": "ab" * 32,
        "metrics": {"roc_auc": 0.9, "log_loss": None},
        "params": {"train": {"trials": 8}},
        "verdict": PASS,
        "line": LINE,
        **changes,
    }
    return registry.register(told.pop("line"), bundle, **told)


def lead(
    registry: Registry, version: int, *, actor: Actor = ANA, reason: str = "for a test", line: str = LINE
) -> Version:
    """Make a version the champion of a line that asks nobody."""
    return registry.promote(line, version, actor=actor, reason=reason, evidence={"policy": "automatic"})


def client(settings: Settings) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=settings.mlflow_uri, registry_uri=settings.mlflow_uri)


class TestRegister:
    @pytest.mark.requirement("K-52")
    def test_two_trainings_of_one_name_give_versions_one_and_two(
        self, settings: Settings, store: Store, tmp_path: Path
    ) -> None:
        """K-52 Done when: two trainings of one name give versions 1 and 2, both retrievable, each naming its dataset hash."""
        registry = Registry(settings.model_copy(update={"tenant": store.tenant}), store)
        first = put(registry, make_bundle(tmp_path / "a", text="a"), data_hash="aa" * 32, metrics={"roc_auc": 0.8})
        second = put(registry, make_bundle(tmp_path / "b", text="b"), data_hash="bb" * 32, metrics={"roc_auc": 0.9})

        assert [1, 2] == [first.version, second.version]
        assert [second, first] == registry.versions(LINE)
        assert ["aa" * 32, "bb" * 32] == [registry.get(LINE, number).data_hash for number in (1, 2)]  # type: ignore[union-attr]
        assert b'"a"' in (registry.fetch(first) / "parts" / "decoder.json").read_bytes()
        assert b'"b"' in (registry.fetch(second) / "parts" / "decoder.json").read_bytes()
        compared = registry.compare(LINE, 1, 2)
        assert ([0.8, 0.9], ["aa" * 32, "bb" * 32]) == (compared["metrics"]["roc_auc"], compared["data_hash"])
        archived = registry.retire(LINE, 1, actor=ANA, reason="old")
        assert archived.archived_at is not None
        assert archived == registry.get(LINE, 1)
        assert registry.fetch(archived).is_dir()
        with pytest.raises(DBAPIError, match="never deleted"), store.begin() as connection:
            connection.execute(sa.delete(t.versions).where(t.versions.c.tenant_id == store.tenant))
        with pytest.raises(DBAPIError, match="never changes"), store.begin() as connection:
            connection.execute(
                sa.update(t.versions).where(t.versions.c.tenant_id == store.tenant).values(data_hash="ee" * 32)
            )

    def test_a_registration_is_told_in_the_ledger_and_becomes_the_candidate(
        self, registry: Registry, bundle: Path
    ) -> None:
        version = put(registry, bundle, run_id="r1")

        entries = ledger.log(registry.store)
        assert ["verdict", "registration", "alias"] == [entry.kind for entry in entries]
        assert {(1, version.bundle_id, "ana")} == {(e.version, e.bundle_id, e.actor) for e in entries}
        assert ("r1", PASS["rules"]) == (entries[0].evidence["run_id"], entries[0].evidence["rules"])
        assert {"alias": "candidate", "from": None, "to": 1} == {
            key: entries[2].evidence[key] for key in ("alias", "from", "to")
        }
        assert ledger.verify(registry.store).ok
        assert version == registry.resolve(LINE, "candidate")
        assert registry.resolve(LINE) is None
        assert ("validated", [LINE]) == (version.state, registry.lines())

    def test_mlflow_shows_the_version_with_its_lineage_run_trials_and_signature(
        self, registry: Registry, settings: Settings, bundle: Path
    ) -> None:
        """K-55's other half: training and every trial are runs in MLflow too."""
        version = put(registry, bundle, run_id="r1", trials=BOARD)

        mlflow = client(settings)
        shown = mlflow.get_model_version_by_alias("tabular--churn", "candidate")
        assert ("1", version.mlflow_run_id) == (str(shown.version), shown.run_id)
        assert {
            "line": LINE, "tenant": "default", "run_id": "r1", "bundle_id": version.bundle_id, "data_hash": "da" * 32,
            "code_revision": "c0ffee", "params_hash": "ab" * 32, "verdict": "pass",
        } == shown.tags  # fmt: skip
        run = mlflow.get_run(version.mlflow_run_id)
        assert ("FINISHED", {"roc_auc": 0.9}, {"train.trials": "8"}) == (
            run.info.status,
            run.data.metrics,
            run.data.params,
        )
        children = mlflow.search_runs(
            [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{version.mlflow_run_id}'"
        )
        assert {"trial 0 xgboost": ({"score": 0.91}, "6"), "trial 1 constant": ({}, None)} == {
            child.info.run_name: (child.data.metrics, child.data.params.get("max_depth")) for child in children
        }
        assert {"MLmodel", "bundle"} == {
            Path(found.path).name for found in mlflow.list_artifacts(run.info.run_id, "model")
        }
        model = Path(registry.fetch(version)).parent
        assert "esteira" in (model / "MLmodel").read_text(encoding="utf-8")
        signature = mlflow_model(model).signature
        assert ["age", "city"] == signature.inputs.input_names()

    def test_a_downloaded_model_version_leaves_the_bundle_untouched(
        self, registry: Registry, settings: Settings, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import mlflow.artifacts

        version = put(registry, bundle)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.mlflow_uri)
        folder = mlflow.artifacts.download_artifacts(
            "models:/tabular--churn@candidate", dst_path=str(tmp_path / "got"), tracking_uri=settings.mlflow_uri
        )

        assert bundles.verify(Path(folder) / "bundle", version.bundle_id)

    def test_the_same_bundle_of_the_same_run_is_registered_once(self, registry: Registry, bundle: Path) -> None:
        assert put(registry, bundle, run_id="r1") == put(registry, bundle, run_id="r1")
        assert 2 == put(registry, bundle, run_id="r2").version

    @pytest.mark.parametrize(
        ("verdict", "said"),
        [
            ({"verdict": "held", "rules": PASS["rules"]}, "the verdict is 'held'"),
            ({"verdict": "pass", "rules": []}, "there is no rule in it"),
            ({"verdict": "pass"}, "there is no rule in it"),
            ({}, "there is no rule"),
            ({"verdict": "pass", "rules": [{"rule": "p95", "outcome": "NO_DATA"}]}, "p95 did not"),
            ({"verdict": "pass", "rules": [*PASS["rules"], {"rule": "drop", "outcome": "FAIL"}]}, "drop did not"),
            ({**PASS, "bundle_id": "00" * 32}, "the verdict is about bundle 000000000000"),
        ],
    )
    def test_without_a_passed_verdict_nothing_is_registered(
        self, verdict: dict[str, Any], said: str, registry: Registry, bundle: Path
    ) -> None:
        with pytest.raises(Refused) as caught:
            put(registry, bundle, verdict=verdict)

        assert ("no_verdict", []) == (caught.value.code, registry.versions(LINE))
        assert said in caught.value.message

    @pytest.mark.requirement("S-41")
    @pytest.mark.parametrize("section", ["purpose", "data", "metrics", "limits", "contact", "licence", "segments"])
    def test_registration_fails_without_a_complete_card(self, section: str, registry: Registry, tmp_path: Path) -> None:
        """S-41 Done when: registration fails without a complete card. (Purpose, data, metrics by segment, limits, contact,
        licence.)"""
        card: dict[str, Any] = {key: value for key, value in CARD.items() if key != section}
        if section == "segments":
            card["metrics"] = {"overall": {"roc_auc": 0.9}}
        with pytest.raises(Refused) as caught:
            put(registry, make_bundle(tmp_path / "poor", card=card))

        assert "incomplete_card" == caught.value.code
        assert section in caught.value.message
        assert ([], []) == (registry.versions(LINE), ledger.log(registry.store))
        assert 1 == put(registry, make_bundle(tmp_path / "whole")).version

    @pytest.mark.parametrize("file", ["card.json", "card.md"])
    def test_registration_fails_without_a_card_file(self, file: str, registry: Registry, tmp_path: Path) -> None:
        folder = make_bundle(tmp_path / "bundle")
        for name in (file, bundles.MANIFEST, bundles.SEAL):
            (folder / name).unlink()
        bundles.seal(folder, manifest={"family": "tabular", "line": LINE, "stages": []})

        with pytest.raises(Refused, match=file):
            put(registry, folder)

    def test_a_bundle_that_was_changed_or_is_of_another_line_is_not_registered(
        self, registry: Registry, bundle: Path
    ) -> None:
        with pytest.raises(Refused) as caught:
            put(registry, bundle, line="tabular@other")
        assert "other_line" == caught.value.code
        (bundle / "card.md").write_text("# Better card\n", encoding="utf-8")
        with pytest.raises(Refused) as caught:
            put(registry, bundle)
        assert "bundle_changed" == caught.value.code
        assert [] == registry.lines()

    def test_processes_that_register_at_once_in_a_fresh_home_get_different_versions(
        self, tmp_path: Path, template: Path
    ) -> None:
        settings = Settings(home=tmp_path / "fresh")
        bundle = make_bundle(tmp_path / "bundle")
        children = [_forked(lambda: put(Registry(settings), bundle)) for _ in range(2)]

        assert [0, 0] == [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        registry = Registry(settings)
        assert [2, 1] == [version.version for version in registry.versions(LINE)]
        assert ledger.verify(registry.store).ok

    def test_an_mlflow_database_that_was_lost_is_shown_the_versions_again(
        self, settings: Settings, template: Path, tmp_path: Path
    ) -> None:
        first = Registry(settings)
        put(first, make_bundle(tmp_path / "a", text="a"))
        put(first, make_bundle(tmp_path / "b", text="b"))
        lead(first, 1)
        shutil.copy(template, settings.home / "mlflow.db")

        third = put(Registry(settings), make_bundle(tmp_path / "c", text="c"))

        assert 3 == third.version
        assert 1 == int(client(settings).get_model_version_by_alias("tabular--churn", "champion").version)
        assert {"1", "2", "3"} == {
            str(v.version) for v in client(settings).search_model_versions("name='tabular--churn'")
        }

    def test_an_alias_that_moves_after_mlflow_was_lost_is_shown_with_its_version(
        self, registry: Registry, settings: Settings, template: Path, bundle: Path
    ) -> None:
        put(registry, bundle)
        shutil.copy(template, settings.home / "mlflow.db")
        lead(Registry(settings), 1)

        assert 1 == int(client(settings).get_model_version_by_alias("tabular--churn", "champion").version)

    def test_another_tenant_has_versions_of_its_own(self, settings: Settings, bundle: Path) -> None:
        acme = Registry(settings.model_copy(update={"tenant": "acme"}))
        put(Registry(settings), bundle)
        assert 1 == put(acme, bundle).version
        assert 1 == len(acme.versions(LINE))
        assert "acme" in acme.fetch(acme.versions(LINE)[0]).as_posix()

    def test_a_tracking_server_that_is_away_registers_nothing(self, settings: Settings, bundle: Path) -> None:
        broken = settings.model_copy(update={"mlflow_uri": f"sqlite:///{settings.home}/none/mlflow.db"})
        (settings.home / "none").touch()
        registry = Registry(broken)
        with pytest.raises(OutsideError) as caught:
            put(registry, bundle)

        assert "mlflow_away" == caught.value.code
        assert [] == registry.lines()


def mlflow_model(folder: Path) -> Any:
    import mlflow.models

    return mlflow.models.Model.load(str(folder))


class TestAliases:
    @pytest.fixture
    def two(self, registry: Registry, tmp_path: Path) -> Registry:
        for text in "ab":
            put(registry, make_bundle(tmp_path / text, text=text))
        return registry

    def test_promotion_sets_champion_and_production_and_remembers_the_former(
        self, two: Registry, settings: Settings
    ) -> None:
        lead(two, 1, reason="first")
        moved = lead(two, 2, actor=BOB, reason="better")

        expected = {"candidate": 2, "champion": 2, "production": 2, "previous": 1}
        assert expected == two.aliases(LINE)
        assert (2, "production") == (moved.version, moved.state)
        assert "retired" == two.get(LINE, 1).state  # type: ignore[union-attr]
        entry = ledger.log(two.store)[-1]
        assert ("alias", 2, "bob") == (entry.kind, entry.version, entry.actor)
        assert {
            "alias": "champion", "from": 1, "to": 2, "reason": "better", "policy": "automatic", "basis": "policy", "rehearsal": None,
            "role": "admin", "keyed": True,
            "moves": {"champion": [1, 2], "production": [1, 2], "previous": [None, 1]},
        } == entry.evidence  # fmt: skip
        shown = client(settings).get_registered_model("tabular--churn").aliases
        assert expected == {alias: int(version) for alias, version in shown.items()}

    def test_a_move_back_is_a_move(self, two: Registry) -> None:
        lead(two, 1)
        lead(two, 2)
        lead(two, 1)

        assert (1, 2) == (two.aliases(LINE)["champion"], two.aliases(LINE)["previous"])
        assert ("production", "retired") == (two.get(LINE, 1).state, two.get(LINE, 2).state)  # type: ignore[union-attr]

    def test_a_move_to_where_it_points_is_no_move(self, two: Registry) -> None:
        lead(two, 1)
        before = len(ledger.log(two.store))
        lead(two, 1)

        assert before == len(ledger.log(two.store))
        assert "previous" not in two.aliases(LINE)

    def test_staging_has_its_state(self, two: Registry) -> None:
        assert "staging" == two.set_alias(LINE, "staging", 1, actor=ANA).state

    @pytest.mark.parametrize("alias", ["previous", "latest", "champion ", "champion", "production", "candidate"])
    def test_an_alias_that_nobody_sets_is_refused(self, alias: str, two: Registry) -> None:
        with pytest.raises(ConfigError) as caught:
            two.set_alias(LINE, alias, 1, actor=BOB)
        assert "bad_alias" == caught.value.code

    def test_a_version_that_does_not_exist_or_was_archived_is_refused(self, two: Registry) -> None:
        two.retire(LINE, 1, actor=ANA, reason="old")
        for number, code in ((1, "archived"), (9, "unknown_version")):
            with pytest.raises(Refused) as caught:
                lead(two, number)
            assert code == caught.value.code
        assert two.resolve(LINE) is None

    def test_what_is_deployed_is_not_archived_and_a_candidate_loses_its_name(
        self, two: Registry, settings: Settings
    ) -> None:
        lead(two, 1)
        with pytest.raises(Refused) as caught:
            two.retire(LINE, 1, actor=ANA, reason="old")
        assert "deployed" == caught.value.code

        two.retire(LINE, 2, actor=ANA, reason="not wanted")
        again = two.retire(LINE, 2, actor=ANA, reason="again")

        assert {"champion": 1, "production": 1} == two.aliases(LINE)
        assert {"champion", "production"} == set(client(settings).get_registered_model("tabular--churn").aliases)
        entries = ledger.log(two.store)
        assert [
            (
                "archive",
                {
                    "reason": "not wanted",
                    "aliases": ["candidate"],
                    "moves": {"candidate": [2, None]},
                    "role": "local",
                    "keyed": False,
                },
            )
        ] == [(entry.kind, entry.evidence) for entry in entries if entry.kind == "archive"]
        assert again.archived_at is not None

    def test_a_move_holds_when_mlflow_is_away_and_is_shown_later(
        self, two: Registry, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        (settings.home / "none").touch()
        away = Registry(settings.model_copy(update={"mlflow_uri": f"sqlite:///{settings.home}/none/x.db"}))
        with caplog.at_level(logging.WARNING, "esteira.registry"):
            lead(away, 1)

        assert "does not show the aliases" in caplog.text
        assert 1 == two.resolve(LINE).version  # type: ignore[union-attr]
        assert "champion" not in client(settings).get_registered_model("tabular--churn").aliases
        Registry(settings).set_alias(LINE, "challenger", 2, actor=ANA)
        assert {"champion", "challenger"} <= set(client(settings).get_registered_model("tabular--churn").aliases)

    def test_threads_that_promote_at_once_leave_one_champion_and_a_ledger_that_says_which(self, two: Registry) -> None:
        threads = [threading.Thread(target=lead, args=(two, 1 + n % 2)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        last = [entry for entry in ledger.log(two.store) if entry.evidence.get("alias") == "champion"][-1]
        assert last.evidence["to"] == two.aliases(LINE)["champion"] == two.aliases(LINE)["production"]
        assert ledger.verify(two.store).ok

    def test_reading_imports_no_mlflow(self, two: Registry, settings: Settings) -> None:
        lead(two, 1)
        code = (
            "import sys; from pathlib import Path; from esteira.registry import Registry\n"
            "from esteira.settings import Settings\n"
            "registry = Registry(Settings(home=Path(sys.argv[1]))); version = registry.resolve(sys.argv[2])\n"
            "registry.fetch(version); registry.versions(sys.argv[2]); registry.lines(); registry.lineage(version)\n"
            "print(version.version, [name for name in ('mlflow', 'alembic', 'pandas', 'onnxruntime') if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(settings.home), LINE],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert "1 []" == done.stdout.strip(), done.stderr


class TestStorage:
    @pytest.mark.requirement("K-51")
    def test_a_modified_artefact_or_one_outside_the_root_is_refused(
        self, registry: Registry, settings: Settings, bundle: Path, tmp_path: Path
    ) -> None:
        """K-51 Done when: a modified artefact or one outside the storage root is refused; a crash mid-write leaves no half
        file. (The crash is `test_a_registration_that_is_cut_off_leaves_no_half_artefact`.)"""
        version = put(registry, bundle)
        stored = registry.fetch(version)
        assert stored.is_relative_to(settings.home / "artifacts")

        part = stored / "parts" / "decoder.json"
        whole = part.read_bytes()
        part.write_bytes(whole.replace(b"1", b"2"))
        with pytest.raises(Refused) as caught:
            registry.fetch(version)
        assert "bundle_changed" == caught.value.code
        part.write_bytes(whole)
        (stored / "extra.json").write_text("{}", encoding="utf-8")
        with pytest.raises(Refused) as caught:
            registry.fetch(version)
        assert "bundle_unlisted" == caught.value.code
        (stored / "extra.json").unlink()
        assert stored == registry.fetch(version)

        (settings.home / "artifacts" / "link").symlink_to(bundle)
        inside = (settings.home / "artifacts").as_uri()
        for number, uri in enumerate(
            [bundle.as_uri(), f"{inside}/../../bundle", f"{inside}/link", f"{inside}/%2e%2e/%2e%2e/bundle",
             "http://host/x", str(bundle), "s3://bucket/x"], start=10,
        ):  # fmt: skip
            with registry.store.begin() as connection:
                row = {**_row(version), "version": number, "uri": uri}
                registry.store.add_version(connection, row)
            outside = registry.get(LINE, number)
            assert outside is not None
            with pytest.raises(Refused) as caught:
                registry.fetch(outside)
            assert "outside_storage" == caught.value.code, uri

    @pytest.mark.requirement("K-51")
    @pytest.mark.parametrize(
        ("point", "versions"),
        [
            ("artefact.half_written", 0),
            ("artefact.before_rename", 0),
            ("register.before_version", 0),
            ("register.before_row", 0),
            ("register.before_mirror", 1),
        ],
    )
    def test_a_registration_that_is_cut_off_leaves_no_half_artefact(
        self, point: str, versions: int, settings: Settings, tmp_path: Path
    ) -> None:
        """K-51 Done when: ... a crash mid-write leaves no half file. And the registry goes on as if nothing had been."""
        registry = Registry(settings)
        champion = put(registry, make_bundle(tmp_path / "a", text="a"))
        lead(registry, 1)
        bundle = make_bundle(tmp_path / "b", text="b")

        _die_at(point, lambda: put(Registry(settings), bundle, run_id="cut"))

        assert 1 + versions == len(registry.versions(LINE))
        assert champion.bundle_id == registry.resolve(LINE).bundle_id  # type: ignore[union-attr]
        assert ledger.verify(registry.store).ok
        artifacts = settings.home / "artifacts"
        for model in artifacts.glob("*/*/artifacts/model"):
            assert bundles.verify(model / "bundle"), "what has its final name is whole"

        again = put(Registry(settings), bundle, run_id="cut")

        assert 2 == again.version
        assert registry.fetch(again).is_dir()
        assert 2 == int(client(settings).get_model_version_by_alias("tabular--churn", "candidate").version)
        assert ledger.verify(registry.store).ok

    def test_a_home_that_was_moved_still_finds_its_bundles(
        self, registry: Registry, settings: Settings, bundle: Path, tmp_path: Path
    ) -> None:
        put(registry, bundle)
        shutil.move(settings.home, tmp_path / "moved")
        moved = Registry(Settings(home=tmp_path / "moved"))

        (version,) = moved.versions(LINE)
        assert moved.fetch(version).is_relative_to(tmp_path / "moved")

    def test_a_root_that_is_neither_a_folder_nor_s3_is_refused(self, settings: Settings) -> None:
        with pytest.raises(ConfigError) as caught:
            Registry(settings.model_copy(update={"artifacts": "gs://bucket"}))
        assert "bad_artifacts" == caught.value.code

    def test_a_folder_that_cannot_be_written_registers_nothing(
        self, settings: Settings, bundle: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        registry = Registry(settings.model_copy(update={"artifacts": str(tmp_path / "file")}))
        with pytest.raises(OutsideError) as caught:
            put(registry, bundle)

        assert ("artefacts_away", []) == (caught.value.code, registry.lines())
        (run,) = client(settings).search_runs([client(settings).get_experiment_by_name("tabular--churn").experiment_id])
        assert "FAILED" == run.info.status


def _row(version: Version) -> dict[str, Any]:
    from dataclasses import asdict

    return {key: value for key, value in asdict(version).items() if key != "created_at"}


def _forked(work: Callable[[], object]) -> int:
    """Do the work in a child that has MLflow imported already: its pid; it ends with 0 when the work is done."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


def _die_at(point: str, work: Callable[[], object]) -> None:
    """Do the work in a child that dies at a crash point."""

    def die() -> None:
        os.environ["ESTEIRA_CRASH_AT"] = point
        work()

    assert -9 == os.waitstatus_to_exitcode(os.waitpid(_forked(die), 0)[1]), f"{point} was not reached"


class TestCutOff:
    @pytest.mark.parametrize(("point", "happened"), [("alias.before_commit", False), ("alias.before_mirror", True)])
    @pytest.mark.parametrize("retiring", [False, True], ids=["staged", "retired"])
    def test_a_move_that_is_cut_off_happened_whole_or_not_at_all(
        self, point: str, happened: bool, retiring: bool, settings: Settings, tmp_path: Path
    ) -> None:
        registry = Registry(settings)
        for text in "ab":
            put(registry, make_bundle(tmp_path / text, text=text))
        before, count = registry.aliases(LINE), len(ledger.log(registry.store))

        def move() -> None:
            if retiring:
                Registry(settings).retire(LINE, 2, actor=ANA, reason="old")
            else:
                Registry(settings).set_alias(LINE, "staging", 2, actor=ANA)

        _die_at(point, move)

        after = {} if retiring else {"candidate": 2, "staging": 2}
        assert (after if happened else before) == registry.aliases(LINE)
        assert count + happened == len(ledger.log(registry.store)), "the ledger says what is so"
        assert ledger.verify(registry.store).ok
        assert before == shown(settings)
        move()
        assert after == registry.aliases(LINE)
        if not (retiring and happened):  # what was taken away and not shown is, with the line's next move
            assert after == shown(settings)


def shown(settings: Settings) -> dict[str, int]:
    """Alias -> version as MLflow shows it."""
    aliases = client(settings).get_registered_model("tabular--churn").aliases
    return {alias: int(version) for alias, version in aliases.items()}


class TestS3:
    @pytest.fixture
    def bucket(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        """A bucket on Moto's server, which answers as S3 does."""
        import boto3
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket="models")
        yield "models"
        server.stop()

    def test_bundles_lie_in_s3_and_are_kept_here_verified(
        self, bucket: str, settings: Settings, bundle: Path, tmp_path: Path
    ) -> None:
        import boto3

        registry = Registry(settings.model_copy(update={"artifacts": f"s3://{bucket}/prefix"}))
        version = put(registry, bundle)
        assert version.uri.startswith(f"s3://{bucket}/prefix/tabular--churn/")

        _die_at("fetch.before_rename", lambda: registry.fetch(version))
        assert not (settings.home / "cache" / "bundles" / version.bundle_id).exists()
        folder = registry.fetch(version)
        assert folder == registry.fetch(version) == settings.home / "cache" / "bundles" / version.bundle_id
        assert bundles.verify(folder, version.bundle_id)

        (folder / "card.md").write_text("spoiled", encoding="utf-8")
        assert b"# Card\n" == (registry.fetch(version) / "card.md").read_bytes(), "a spoiled copy is fetched anew"
        shutil.rmtree(folder)
        key = f"{version.uri.removeprefix(f's3://{bucket}/')}/parts/decoder.json"
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=b'{"text": "2"}')
        with pytest.raises(Refused) as caught:
            registry.fetch(version)
        assert "bundle_changed" == caught.value.code
        manifest = f"{version.uri.removeprefix(f's3://{bucket}/')}/manifest.json"
        boto3.client("s3").put_object(Bucket=bucket, Key=manifest, Body=b'{"files": {"../../x.json": {}}}')
        with pytest.raises(Refused) as caught:
            registry.fetch(version)
        assert "bundle_manifest" == caught.value.code
        boto3.client("s3").delete_object(Bucket=bucket, Key=manifest)
        with pytest.raises(SourceError) as gone:
            registry.fetch(version)
        assert "missing_bundle" == gone.value.code
        assert not folder.exists()
        elsewhere = Registry(settings.model_copy(update={"artifacts": f"s3://{bucket}/other"}))
        with pytest.raises(Refused) as caught:
            elsewhere.fetch(version)
        assert "outside_storage" == caught.value.code

    def test_a_bundle_cannot_be_stored_in_a_bucket_that_is_not_there(self, bucket: str, bundle: Path) -> None:
        bundle_id = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()

        with pytest.raises(OutsideError) as caught:
            artefacts.put(bundle, bundle_id, root="s3://another", name="tabular", run="r1", mlmodel="")

        assert "artefacts_away" == caught.value.code

    @pytest.mark.parametrize(
        ("status", "said", "error", "code"),
        [
            (404, "NoSuchKey", SourceError, "missing_bundle"),
            (404, "NoSuchBucket", SourceError, "missing_storage"),
            (403, "AccessDenied", OutsideError, "artefacts_away"),
        ],
    )
    def test_a_bundle_is_gone_where_storage_says_so_and_away_where_it_may_not_be_read(
        self,
        status: int,
        said: str,
        error: type[EsteiraError],
        code: str,
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        class Storage(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = f"<Error><Code>{said}</Code><Message>no</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Storage) as server:
            serving = threading.Thread(target=server.serve_forever)
            serving.start()
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            try:
                with pytest.raises(error) as caught:
                    artefacts.fetch("s3://models/x/bundle", "ab" * 32, root="s3://models", place="", home=settings.home)
            finally:
                server.shutdown()
                serving.join()

        assert code == caught.value.code


class TestLineage:
    @pytest.mark.requirement("S-39")
    def test_from_a_deployed_version_code_data_model_and_run_can_be_fetched(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        """S-39 Done when: from a deployed version all four can be fetched. (Code commit, data hash, model hash, run id.)"""
        code = tmp_path / "code"
        code.mkdir()
        (code / "train.py").write_text("print('train')\n", encoding="utf-8")
        who = ["-c", "user.name=ana", "-c", "user.email=ana@example.org"]
        for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
            subprocess.run(["git", *arguments], cwd=code, check=True, timeout=30)
        commit = _git(code, "rev-parse", "HEAD")
        data = tmp_path / "churn.csv"
        data.write_text("age,left\n1,no\n", encoding="utf-8")
        data_hash = hashlib.sha256(data.read_bytes()).hexdigest()
        store = registry.store
        store.register_dataset(name="churn", content_hash=data_hash, created_by="ana", file_path=str(data))
        store.start_run(run_id="r1", line=LINE, seed=42, params={"train": {"trials": 8}})
        bundle = make_bundle(tmp_path / "bundle")
        put(registry, bundle, run_id="r1", data_hash=data_hash, code_revision=commit)
        store.finish_run(run_id="r1", status="released", version=1)
        lead(registry, 1)

        deployed = registry.resolve(LINE)
        assert deployed is not None
        lineage = registry.lineage(deployed)

        assert "print('train')" == _git(code, "show", f"{lineage['code']['revision']}:train.py")
        fetched = Path(lineage["data"]["dataset"]["file_path"])
        assert lineage["data"]["hash"] == hashlib.sha256(fetched.read_bytes()).hexdigest()
        model = registry.fetch(deployed)
        assert lineage["model"]["bundle_id"] == hashlib.sha256((model / "manifest.json").read_bytes()).hexdigest()
        assert ("r1", 42, {"train": {"trials": 8}}) == (
            lineage["run"]["run_id"],
            lineage["run"]["run"]["seed"],
            lineage["run"]["run"]["params"],
        )
        assert json.loads(json.dumps(lineage))

    def test_what_was_not_recorded_is_null(self, registry: Registry, bundle: Path) -> None:
        lineage = registry.lineage(put(registry, bundle))

        assert (None, None) == (lineage["data"]["dataset"], lineage["run"]["run"])


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()
