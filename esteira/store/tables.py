"""The tables of the platform store, as SQLAlchemy Core sees them. Migrations make them; a test compares the two.

Every table has `tenant_id` in front. Times are UTC and aware on both databases. What is undefined is null.
"""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

RUN_STATES = ("running", "released", "awaiting_approval", "held", "failed")
STEP_STATES = ("ran", "reused", "failed")
VERSION_STATES = ("training", "validated", "staging", "production", "retired", "failed", "rolled_back")
BATCH_STATES = ("queued", "running", "done", "failed", "cancelled")
ARMS = ("candidate", "control")
APPROVAL_STATES = ("requested", "approved", "used", "void")


class UtcTime(TypeDecorator[datetime]):
    """An aware time in UTC; SQLite, which has none, keeps it without its zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time must be aware, but got {value.isoformat()}")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData()


def _tenant() -> sa.Column[str]:
    return sa.Column("tenant_id", sa.String(64), primary_key=True)


def _one_of(column: str, values: tuple[str, ...]) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=f"ck_{column}")


def _table(name: str, *parts: Any) -> sa.Table:
    return sa.Table(name, metadata, *parts)


experiments = _table(
    "experiments",
    _tenant(),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
)

runs = _table(
    "runs",
    _tenant(),
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("line", sa.String(200), nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("seed", sa.BigInteger),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("params", sa.JSON, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("bundle_id", sa.String(64)),
    sa.Column("version", sa.Integer),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("pid_started", sa.BigInteger),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("started_at", UtcTime, nullable=False),
    sa.Column("finished_at", UtcTime),
    _one_of("status", RUN_STATES),
    sa.Index("ix_runs_line", "tenant_id", "line", "started_at"),
)


def _of_run() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant_id", "run_id"], ["runs.tenant_id", "runs.run_id"], name="fk_run")


steps = _table(
    "steps",
    _tenant(),
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("started_at", UtcTime, nullable=False),
    _one_of("status", STEP_STATES),
    _of_run(),
)

trials = _table(
    "trials",
    _tenant(),
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("params", sa.JSON, nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("metrics", sa.JSON, nullable=False),
    _of_run(),
)

# K-08, and content_hash: a model names exactly the bytes it was trained on. Tenant and creator are names, not UUIDs,
# because the actor is the name of the key that was used.
datasets = _table(
    "datasets",
    sa.Column("id", sa.Uuid(as_uuid=False), primary_key=True, server_default=sa.FetchedValue()),
    sa.Column("tenant_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("description", sa.Text),
    sa.Column("dataset_type", sa.String(50), nullable=False),
    sa.Column("data_format", sa.String(20), nullable=False),
    sa.Column("source_type", sa.String(50), nullable=False),
    sa.Column("source_config", sa.JSON(none_as_null=True)),
    sa.Column("schema_config", sa.JSON(none_as_null=True)),
    sa.Column("statistics", sa.JSON(none_as_null=True)),
    sa.Column("file_path", sa.Text),
    sa.Column("file_size", sa.BigInteger),
    sa.Column("row_count", sa.BigInteger),
    sa.Column("column_count", sa.Integer),
    sa.Column("quality_score", sa.Numeric(5, 4, asdecimal=False)),
    sa.Column("content_hash", sa.String(64), nullable=False),
    sa.Column("is_processed", sa.Boolean, nullable=False),
    sa.Column("processed_at", UtcTime),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("updated_at", UtcTime, nullable=False),
    _one_of("dataset_type", ("training", "validation", "test")),
    _one_of("data_format", ("csv", "json", "parquet", "image", "text")),
    _one_of("source_type", ("upload", "database", "api", "stream")),
    sa.UniqueConstraint("tenant_id", "content_hash", "name", "dataset_type", name="uq_datasets_content"),
)

ledger = _table(
    "ledger",
    _tenant(),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("line", sa.String(200), nullable=False),
    sa.Column("version", sa.Integer),
    sa.Column("bundle_id", sa.String(64)),
    sa.Column("actor", sa.String(200), nullable=False),
    # Text, not JSON: the hash is over these very characters on both databases.
    sa.Column("evidence", sa.Text, nullable=False),
    sa.Column("prev", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Index("ix_ledger_line", "tenant_id", "line", "seq"),
)

versions = _table(
    "versions",
    _tenant(),
    sa.Column("line", sa.String(200), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("bundle_id", sa.String(64), nullable=False),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("mlflow_run_id", sa.String(64), nullable=False),
    sa.Column("data_hash", sa.String(64), nullable=False),
    sa.Column("code_revision", sa.String(200), nullable=False),
    sa.Column("params_hash", sa.String(64), nullable=False),
    sa.Column("params", sa.JSON, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("archived_at", UtcTime),
    sa.Column("created_at", UtcTime, nullable=False),
    # K-53: when it last became the champion; null before the first time. K-05: what it is.
    sa.Column("deployed_at", UtcTime),
    sa.Column("model_type", sa.String(100)),
    sa.Column("algorithm", sa.String(100)),
    sa.Column("framework", sa.String(100)),
    _one_of("state", VERSION_STATES),
)

aliases = _table(
    "aliases",
    _tenant(),
    sa.Column("line", sa.String(200), primary_key=True),
    sa.Column("alias", sa.String(32), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("bundle_id", sa.String(64), nullable=False),
    sa.Column("ledger_seq", sa.BigInteger, nullable=False),
    sa.Column("moved_at", UtcTime, nullable=False),
    # False until MLflow, the mirror, shows the same.
    sa.Column("mirrored", sa.Boolean, nullable=False),
    sa.ForeignKeyConstraint(
        ["tenant_id", "line", "version"],
        ["versions.tenant_id", "versions.line", "versions.version"],
        name="fk_version",
    ),
)

# S-40: one row a version; the ledger keeps all that was ever asked and decided.
approvals = _table(
    "approvals",
    _tenant(),
    sa.Column("line", sa.String(200), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("bundle_id", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("requested_by", sa.String(200), nullable=False),
    sa.Column("requested_at", UtcTime, nullable=False),
    sa.Column("hours", sa.Float, nullable=False),
    sa.Column("policy", sa.JSON, nullable=False),
    sa.Column("approver", sa.String(200)),
    sa.Column("approved_at", UtcTime),
    sa.Column("expires_at", UtcTime),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("ledger_seq", sa.BigInteger, nullable=False),
    _one_of("state", APPROVAL_STATES),
    sa.ForeignKeyConstraint(
        ["tenant_id", "line", "version"],
        ["versions.tenant_id", "versions.line", "versions.version"],
        name="fk_approved_version",
    ),
)

predictions = _table(
    "predictions",
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("tenant_id", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("line", sa.String(200), nullable=False),
    sa.Column("version", sa.Integer),
    sa.Column("bundle_id", sa.String(64)),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("elapsed_ms", sa.Float, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Index("ix_predictions_line", "tenant_id", "line", "at"),
)

# K-57. `owner` is who works on it and `beat_at` its last sign of life; `tries` counts how often it was begun and not heard of its
# end. The answers themselves lie at `out`.
batch_jobs = _table(
    "batch_jobs",
    _tenant(),
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("line", sa.String(200), nullable=False),
    sa.Column("version", sa.Integer),
    sa.Column("bundle_id", sa.String(64), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("out", sa.Text, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("rows", sa.BigInteger),
    sa.Column("processed", sa.BigInteger, nullable=False),
    sa.Column("error", sa.BigInteger, nullable=False),
    sa.Column("progress", sa.Integer, nullable=False),
    sa.Column("failure", sa.JSON(none_as_null=True)),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("queued_at", UtcTime, nullable=False),
    sa.Column("started_at", UtcTime),
    sa.Column("finished_at", UtcTime),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(64)),
    sa.Column("beat_at", UtcTime),
    _one_of("state", BATCH_STATES),
    sa.Index("ix_batch_jobs_state", "tenant_id", "state", "queued_at"),
    sa.Index("ix_batch_jobs_created", "tenant_id", "created_at"),
)

# H-41. Each writer adds to a row of its own, so that one that dies takes nothing with it and none is counted twice.
rollout_sums = _table(
    "rollout_sums",
    _tenant(),
    sa.Column("test_id", sa.String(200), primary_key=True),
    sa.Column("stage", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("arm", sa.String(16), primary_key=True),
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("sums", sa.JSON, nullable=False),
    sa.Column("updated_at", UtcTime, nullable=False),
    _one_of("arm", ARMS),
)

# Answers of a rollout whose truth may still come: what was predicted, and nothing of the row. `unit` is the start of a hash.
rollout_units = _table(
    "rollout_units",
    _tenant(),
    sa.Column("test_id", sa.String(200), primary_key=True),
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("row_index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("line", sa.String(200), nullable=False),
    sa.Column("unit", sa.String(16), nullable=False),
    sa.Column("arm", sa.String(16), nullable=False),
    sa.Column("stage", sa.Integer, nullable=False),
    sa.Column("version", sa.Integer),
    sa.Column("answer", sa.JSON, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("outcome", sa.Float),
    sa.Column("labelled_at", UtcTime),
    _one_of("arm", ARMS),
    sa.Index("ix_rollout_units_request", "tenant_id", "request_id", "row_index"),
    sa.Index("ix_rollout_units_unit", "tenant_id", "unit", "at"),
    sa.Index("ix_rollout_units_at", "tenant_id", "at"),
)

# Users of an experiment (policy `ab`), by the start of a hash: requests that were served, and how many outcomes of each primary
# (its place in the plan, as text) they sum up to. So that a user counts once, whichever process serves.
rollout_tallies = _table(
    "rollout_tallies",
    _tenant(),
    sa.Column("test_id", sa.String(200), primary_key=True),
    sa.Column("arm", sa.String(16), primary_key=True),
    sa.Column("unit", sa.String(16), primary_key=True),
    sa.Column("served", sa.Integer, nullable=False),
    sa.Column("outcomes", sa.JSON, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    _one_of("arm", ARMS),
    sa.Index("ix_rollout_tallies_at", "tenant_id", "at"),
)
