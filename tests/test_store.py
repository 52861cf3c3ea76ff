"""The platform store keeps what ran and what was registered: the same on SQLite and on a real PostgreSQL."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from esteira.errors import ConfigError, OutsideError
from esteira.store import BatchJobs, Store
from esteira.store import tables as t
from esteira.store.database import HEAD, open_engine
from tests.stores import sqlite_store, sqlite_template, store, store_url

__all__ = ["sqlite_store", "sqlite_template", "store", "store_url"]

HASH = "ab" * 32


@pytest.fixture
def fresh_url(store_url: str, tmp_path: Path) -> Iterator[str]:
    """An empty database of the same kind."""
    if store_url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path / 'with 100% space' / 'fresh.db'}"
        return
    engine = sa.create_engine(store_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE fresh")
    yield sa.make_url(store_url).set(database="fresh").render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE fresh WITH (FORCE)")
    engine.dispose()


def _python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


class TestSchema:
    def test_three_processes_that_open_a_fresh_database_at_once_all_get_it(self, fresh_url: str) -> None:
        code = (
            "import sys; from esteira.store import Store\n"
            "store = Store.open(sys.argv[1]); store.start_run(run_id=sys.argv[2], line='tabular')"
        )
        processes = [_python(code, fresh_url, f"run-{number}") for number in range(3)]

        for process in processes:
            _, said = process.communicate(timeout=60)
            assert 0 == process.returncode, said
        opened = Store.open(fresh_url)
        assert {"run-0", "run-1", "run-2"} == {run.run_id for run in opened.list_runs()}
        opened.close()

    def test_opening_twice_leaves_an_identical_schema(self, fresh_url: str) -> None:
        Store.open(fresh_url).close()
        first = _schema(fresh_url)
        Store.open(fresh_url).close()

        assert first == _schema(fresh_url)

    def test_migrations_make_exactly_the_tables_that_the_code_knows(self, store: Store) -> None:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        with store.read() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert [] == compare_metadata(context, t.metadata)

    def test_head_is_the_newest_migration_of_the_folder(self) -> None:
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        import esteira.store

        config = Config()
        config.set_main_option("script_location", str(Path(esteira.store.__file__).parent / "migrations"))
        assert [HEAD] == list(ScriptDirectory.from_config(config).get_heads())

    def test_a_store_of_an_older_version_is_brought_up_to_date_and_keeps_its_rows(self, fresh_url: str) -> None:
        _migrated(fresh_url, "0001")
        assert "receipts" in _schema(fresh_url)
        store = Store(open_engine(fresh_url), "default")
        store.start_run(run_id="old", line="tabular")
        store.close()

        opened = Store.open(fresh_url)

        assert "receipts" not in _schema(fresh_url)
        assert ["old"] == [run.run_id for run in opened.list_runs()]
        opened.close()

    def test_a_job_of_a_store_without_a_queue_waits_as_it_was_asked_for(self, fresh_url: str) -> None:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        _migrated(fresh_url, "0003")
        asked = [datetime(2026, 11, 21, 10, minute, tzinfo=UTC) for minute in (30, 15)]
        engine = open_engine(fresh_url)
        with engine.begin() as connection:
            former = sa.Table("batch_jobs", sa.MetaData(), autoload_with=connection)
            assert not {"queued_at", "tries"}.intersection(former.c.keys())
            for name, at in zip("ab", asked, strict=True):
                connection.execute(sa.insert(former).values(
                    tenant_id="default", job_id=name, line="tabular", bundle_id=HASH, data="/in", out="/out",
                    options={"form": "csv"}, state="queued", processed=7, error=1, progress=3, created_by="ana", created_at=at,
                ))  # fmt: skip
        engine.dispose()

        opened = Store.open(fresh_url)
        jobs = BatchJobs(opened)

        found = [jobs.find(name) for name in "ab"]
        assert [(at, at, 0, 7, {"form": "csv"}) for at in asked] == [
            (job.created_at, job.queued_at, job.tries, job.processed, job.options) for job in found if job is not None
        ]
        with pytest.raises(IntegrityError):
            jobs.move("a", ("queued",), state="splendid")
        claimed = jobs.claim("one", lease=60)
        assert claimed is not None
        assert ("b", 1) == (claimed.job_id, claimed.tries)
        with opened.read() as connection:
            assert [] == compare_metadata(
                MigrationContext.configure(connection, opts={"compare_type": True}), t.metadata
            )
        opened.close()

    def test_a_store_whose_third_migration_made_the_queue_already_loses_nothing(self, fresh_url: str) -> None:
        _migrated(fresh_url, "0004")
        opened = Store(open_engine(fresh_url), "default")
        words = {"job_id": "a", "line": "tabular", "version": None, "bundle_id": HASH, "data": "/in", "out": "/out"}
        BatchJobs(opened).add({**words, "options": {}, "created_by": "ana"}, most=1)
        with opened.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0003'")
        opened.close()
        before = _schema(fresh_url)["batch_jobs"]

        again = Store.open(fresh_url)

        assert before == _schema(fresh_url)["batch_jobs"]
        assert ["a"] == [job.job_id for job in BatchJobs(again).latest(10)]
        again.close()

    def test_every_table_has_a_tenant(self) -> None:
        assert all("tenant_id" in table.c for table in t.metadata.tables.values())

    def test_a_migration_that_fails_half_way_leaves_nothing(
        self, fresh_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from alembic import op

        def fail(*_: object) -> None:
            raise RuntimeError("the disk went away")

        monkeypatch.setattr(op, "create_index", fail)
        with pytest.raises(RuntimeError, match="went away"):
            Store.open(fresh_url)
        monkeypatch.undo()

        assert {} == _schema(fresh_url)
        Store.open(fresh_url).close()

    def test_a_schema_that_is_newer_than_the_code_is_refused(self, sqlite_store: Store) -> None:
        with sqlite_store.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

        with pytest.raises(ConfigError) as caught:
            sqlite_store.migrate()
        assert "schema_newer" == caught.value.code

    def test_an_up_to_date_store_opens_without_alembic_or_the_orm(self, sqlite_store: Store) -> None:
        code = (
            "import sys; from esteira.store import Store; Store.open(sys.argv[1])\n"
            "print([name for name in ('alembic', 'sqlalchemy.orm', 'pandas', 'mlflow') if name in sys.modules])"
        )
        process = _python(code, str(sqlite_store.engine.url))

        said, problem = process.communicate(timeout=30)

        assert "[]" == said.strip(), problem


def _migrated(url: str, revision: str) -> None:
    """Bring an empty database up to a former revision."""
    from alembic import command
    from alembic.config import Config

    import esteira.store

    config = Config()
    config.set_main_option("script_location", str(Path(esteira.store.__file__).parent / "migrations"))
    engine = open_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def _schema(url: str) -> dict[str, Any]:
    engine = sa.create_engine(url)
    inspector = sa.inspect(engine)
    found = {
        name: [(column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(name)]
        for name in inspector.get_table_names()
    }
    engine.dispose()
    return found


class TestAddress:
    @pytest.mark.parametrize("url", ["mysql://ana:s3cret@host/db", "nonsense", "sqlite://", "sqlite:///:memory:"])
    def test_an_address_of_something_else_is_refused_without_its_password(self, url: str) -> None:
        with pytest.raises(ConfigError) as caught:
            Store.open(url)

        assert "bad_database_url" == caught.value.code
        assert "s3cret" not in str(caught.value)

    def test_a_server_that_is_away_is_told_without_its_password(self) -> None:
        with pytest.raises(OutsideError) as caught:
            Store.open("postgresql://ana:s3cret@127.0.0.1:1/none")

        assert "store_away" == caught.value.code
        assert "s3cret" not in str(caught.value) + repr(caught.value.__cause__)

    def test_a_store_does_not_show_its_password(self) -> None:
        assert "s3cret" not in repr(Store(open_engine("postgresql://ana:s3cret@127.0.0.1:1/none"), "default"))

    def test_a_full_disk_is_told_with_its_cure_and_changes_nothing(self, sqlite_store: Store) -> None:
        def shrink(connection: Any, _: object) -> None:
            connection.execute("PRAGMA max_page_count = 1")

        sa.event.listen(sqlite_store.engine, "connect", shrink)
        with pytest.raises(OutsideError) as caught:
            sqlite_store.start_run(run_id="r", line="tabular", params={"a": "x" * 2_000_000})

        assert "disk_full" == caught.value.code
        assert sqlite_store.find_run("r") is None


class TestRuns:
    def test_a_run_is_running_until_it_is_finished(self, store: Store) -> None:
        began = store.start_run(run_id="r1", line="tabular@x", seed=7, source="x.csv", params={"train": {"trials": 4}})
        store.finish_run(run_id="r1", status="released", metrics={"roc_auc": 0.9}, bundle_id=HASH, version=3)

        ended = store.get_run("r1")
        assert ("running", None, os.getpid()) == (began.status, began.finished_at, began.pid)
        assert ("released", 3, HASH, {"roc_auc": 0.9}) == (ended.status, ended.version, ended.bundle_id, ended.metrics)
        assert ended.finished_at is not None
        assert began.started_at <= ended.finished_at
        assert timedelta(0) == ended.finished_at.utcoffset()
        assert json.loads(json.dumps(ended.to_dict()))["started_at"].endswith("+00:00")

    def test_runs_are_listed_newest_first_and_by_line(self, store: Store) -> None:
        for name, line in (("r1", "tabular@x"), ("r2", "tabular@y"), ("r3", "tabular@x")):
            store.start_run(run_id=name, line=line)

        assert ["r3", "r2", "r1"] == [run.run_id for run in store.list_runs()]
        assert ["r3", "r1"] == [run.run_id for run in store.list_runs("tabular@x")]
        assert ["r3"] == [run.run_id for run in store.list_runs(limit=1)]

    def test_a_run_that_nobody_started_is_not_found(self, store: Store) -> None:
        assert store.find_run("none") is None
        for ask in (lambda: store.get_run("none"), lambda: store.finish_run(run_id="none", status="failed")):
            with pytest.raises(ConfigError) as caught:
                ask()
            assert "unknown_run" == caught.value.code

    def test_a_state_that_does_not_exist_is_refused_by_the_database(self, store: Store) -> None:
        store.start_run(run_id="r1", line="tabular")
        with pytest.raises(DBAPIError):
            store.finish_run(run_id="r1", status="splendid")

    def test_what_is_undefined_is_kept_as_null(self, store: Store) -> None:
        store.start_run(run_id="r1", line="tabular")
        store.finish_run(run_id="r1", status="held", metrics={"r2": math.nan, "rmse": math.inf, "mae": 1.5})

        assert {"r2": None, "rmse": None, "mae": 1.5} == store.get_run("r1").metrics

    def test_a_password_in_a_source_is_not_kept(self, store: Store) -> None:
        source = "postgresql://ana:s3cret@db/shop#select 1"
        store.start_run(run_id="r1", line="tabular", source=source, params={"source": source})
        store.finish_run(run_id="r1", status="failed", error={"message": f"cannot read {source}"})

        run = store.get_run("r1")
        assert "s3cret" not in json.dumps(run.to_dict())
        assert "postgresql://ana:***@db/shop#select 1" == run.source

    def test_steps_come_back_in_order_and_a_retry_replaces_its_record(self, store: Store) -> None:
        store.start_run(run_id="r1", line="tabular")
        store.record_step(run_id="r1", name="validate", status="failed", seconds=0.0, why="quarantine \0 full")
        store.record_step(run_id="r1", name="ingest", status="ran", seconds=10.0)
        store.record_step(run_id="r1", name="validate", status="ran", seconds=0.0)

        assert [("ingest", "ran"), ("validate", "ran")] == [(step.name, step.status) for step in store.steps("r1")]

    def test_a_run_whose_process_was_killed_becomes_failed(self, store: Store) -> None:
        code = (
            "import os, sys; from esteira.store import Store\n"
            "Store.open(sys.argv[1], tenant=sys.argv[2]).start_run(run_id='dead', line='tabular')\n"
            "os.kill(os.getpid(), 9)"
        )
        process = _python(code, store.engine.url.render_as_string(hide_password=False), store.tenant)
        process.communicate(timeout=30)
        store.start_run(run_id="alive", line="tabular")

        assert ["dead"] == store.reap()

        dead = store.get_run("dead")
        assert "failed" == dead.status
        assert dead.error is not None
        assert "killed" == dead.error["code"]
        assert "running" == store.get_run("alive").status
        assert [] == store.reap()

    def test_a_pid_that_was_given_out_again_is_not_taken_for_the_run(self, store: Store) -> None:
        store.start_run(run_id="r1", line="tabular")
        with store.begin() as connection:
            connection.execute(sa.update(t.runs).where(t.runs.c.run_id == "r1").values(pid_started=1))

        assert ["r1"] == store.reap()

    def test_a_finish_that_was_cut_off_leaves_the_run_running(self, store: Store) -> None:
        store.start_run(run_id="r1", line="tabular")
        code = (
            "import os, sys; from esteira.store import Store\n"
            "os.environ['ESTEIRA_CRASH_AT'] = 'run.before_finish'\n"
            "Store.open(sys.argv[1], tenant=sys.argv[2]).finish_run(run_id='r1', status='released', version=1)"
        )
        process = _python(code, store.engine.url.render_as_string(hide_password=False), store.tenant)
        process.communicate(timeout=30)

        assert -9 == process.returncode
        assert ("running", None) == (store.get_run("r1").status, store.get_run("r1").version)


class TestTracking:
    BOARD = (
        {
            "number": 1,
            "kind": "xgboost",
            "params": {"max_depth": 6},
            "score": 0.91,
            "deviation": 0.01,
            "fit_seconds": 2.5,
        },
        {"number": 0, "kind": "constant", "params": {}, "score": float("nan")},
    )

    def test_every_trial_is_kept_with_parameters_and_metrics(self, store: Store) -> None:
        store.start_run(run_id="r1", line="tabular")

        assert 2 == store.record_trials("r1", self.BOARD)
        assert 2 == store.record_trials("r1", self.BOARD)

        first, second = store.trials("r1")
        assert ("constant", None, {}) == (first.kind, first.score, first.params)
        assert ("xgboost", 0.91, {"max_depth": 6}) == (second.kind, second.score, second.params)
        assert {"deviation": 0.01, "fit_seconds": 2.5} == second.metrics

    @pytest.mark.requirement("K-55")
    def test_every_training_and_trial_appears_as_a_run_with_parameters_and_metrics(self, store: Store) -> None:
        """K-55 Done when: every training and AutoML trial appears as a run with parameters and metrics.

        Here by the local back end, which needs no server; `tests/test_registry.py` shows the same by the MLflow adapter.
        """
        store.create_experiment("tabular@x", description="who leaves", actor="ana")
        for name, trials, score in (("r1", 4, 0.8), ("r2", 8, 0.9)):
            store.start_run(run_id=name, line="tabular@x", seed=42, params={"train": {"trials": trials}})
            store.record_trials(name, self.BOARD)
            store.finish_run(run_id=name, status="released", metrics={"roc_auc": score})

        (experiment,) = store.list_experiments()
        assert ("tabular@x", "who leaves", "ana", 2) == (
            experiment.name,
            experiment.description,
            experiment.created_by,
            experiment.runs,
        )
        for run in store.list_runs("tabular@x"):
            assert run.params
            assert run.metrics
            assert run.finished_at is not None
            assert [0, 1] == [trial.number for trial in store.trials(run.run_id)]
            assert {"max_depth": 6} == store.trials(run.run_id)[1].params
            assert 0.91 == store.trials(run.run_id)[1].score
        compared = store.compare_runs("r1", "r2")
        assert {"train.trials": [4, 8]} == compared["params"]
        assert {"roc_auc": [0.8, 0.9]} == compared["metrics"]

    def test_compare_shows_null_where_one_run_has_no_such_key(self, store: Store) -> None:
        store.start_run(run_id="a", line="tabular", params={"x": 1})
        store.start_run(run_id="b", line="tabular", params={"y": {"z": 2}})

        assert {"x": [1, None], "y.z": [None, 2]} == store.compare_runs("a", "b")["params"]


class TestDatasets:
    def test_the_same_bytes_again_bring_the_record_up_to_date(self, store: Store) -> None:
        first = store.register_dataset(name="churn", content_hash=HASH, created_by="ana", row_count=10)
        again = store.register_dataset(
            name="churn", content_hash=HASH, created_by="bob", row_count=10, quality_score=0.87654
        )

        assert first.id == again.id
        assert 36 == len(first.id)
        assert ("ana", None) == (again.created_by, first.quality_score)
        assert 0.8765 == pytest.approx(again.quality_score, abs=1e-4)
        assert again.updated_at >= first.updated_at
        assert [again] == store.list_datasets()
        assert again == store.get_dataset(HASH)
        assert store.get_dataset("cd" * 32) is None

    def test_other_bytes_of_that_name_are_another_data_set(self, store: Store) -> None:
        store.register_dataset(name="churn", content_hash=HASH, created_by="ana")
        store.register_dataset(name="churn", content_hash=HASH[::-1], created_by="ana")

        assert 2 == len(store.list_datasets())

    def test_a_column_that_does_not_exist_is_our_own_bug(self, store: Store) -> None:
        with pytest.raises(TypeError, match="no column colour"):
            store.register_dataset(name="churn", content_hash=HASH, created_by="ana", colour="red")


class TestPredictions:
    def test_served_requests_are_kept_in_batches(self, store: Store) -> None:
        at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        record = {
            "request_id": "x" * 300,
            "line": "tabular",
            "version": 2,
            "bundle_id": HASH,
            "rows": 3,
            "elapsed_ms": 1.25,
            "status": 200,
            "at": at,
        }
        store.record_predictions([])
        store.record_predictions([record, {**record, "request_id": "r2", "line": "tabular@y"}])

        newest, oldest = store.list_predictions()
        assert ("r2", at) == (newest.request_id, newest.at)
        assert 128 == len(oldest.request_id)
        assert ["r2"] == [found.request_id for found in store.list_predictions("tabular@y")]


class TestTenants:
    def test_a_tenant_sees_none_of_anothers_rows(self, store: Store, store_url: str) -> None:
        other = Store.open(store_url, tenant=store.tenant + "-other")
        store.start_run(run_id="r1", line="tabular")
        store.record_step(run_id="r1", name="ingest", status="ran", seconds=1.0)
        store.register_dataset(name="churn", content_hash=HASH, created_by="ana")

        assert other.find_run("r1") is None
        assert not any([other.list_runs(), other.steps("r1"), other.list_datasets(), other.list_experiments()])
        other.start_run(run_id="r1", line="tabular")
        assert "running" == other.get_run("r1").status
        other.close()


def test_a_forked_child_does_not_share_connections_with_its_parent(store: Store) -> None:
    store.start_run(run_id="r1", line="tabular")
    code = (
        "import os, sys; from esteira.store import Store\n"
        "store = Store.open(sys.argv[1], tenant=sys.argv[2]); store.list_runs()\n"
        "pid = os.fork()\n"
        "for number in range(20): store.record_step(run_id='r1', name=f'{pid > 0}-{number}', status='ran', seconds=0.0)\n"
        "os._exit(0) if pid == 0 else sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    process = _python(code, store.engine.url.render_as_string(hide_password=False), store.tenant)
    _, said = process.communicate(timeout=60)

    assert 0 == process.returncode, said
    assert 40 == len(store.steps("r1"))
