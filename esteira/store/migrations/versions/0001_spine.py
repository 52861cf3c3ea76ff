"""The first tables: runs with steps and trials, receipts, datasets, ledger, versions, aliases, predictions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)

# A random UUID (version 4) as 32 hexadecimal digits, the form in which SQLAlchemy keeps one in SQLite.
_UUID_SQLITE = (
    "(lower(hex(randomblob(6)) || '4' || substr(hex(randomblob(2)), 2)"
    " || substr('89AB', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || hex(randomblob(6))))"
)

# What may never change in a registered version; only its state and archived_at move.
_FIXED = (
    "tenant_id",
    "line",
    "version",
    "bundle_id",
    "uri",
    "run_id",
    "mlflow_run_id",
    "data_hash",
    "code_revision",
    "params_hash",
    "actor",
    "created_at",
)


def upgrade() -> None:
    """Make the tables, and the triggers that keep the ledger append-only and versions immutable."""
    _runs()
    _data()
    _versions()
    if op.get_bind().dialect.name == "postgresql":
        _guards_postgresql()
    else:
        _guards_sqlite()


def downgrade() -> None:
    """There is nothing before the first migration, and a ledger is not thrown away."""
    raise NotImplementedError("the first migration has no way back: restore a backup instead")


def _tenant() -> sa.Column[str]:
    return sa.Column("tenant_id", sa.String(64), primary_key=True)


def _one_of(column: str, *values: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=f"ck_{column}")


def _of_run() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant_id", "run_id"], ["runs.tenant_id", "runs.run_id"], name="fk_run")


def _runs() -> None:
    op.create_table(
        "experiments",
        _tenant(),
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "runs",
        _tenant(),
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("line", sa.String(200), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("seed", sa.BigInteger),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("params", sa.JSON, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("error", sa.JSON),
        sa.Column("bundle_id", sa.String(64)),
        sa.Column("version", sa.Integer),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("pid_started", sa.BigInteger),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("finished_at", _TIME),
        _one_of("status", "running", "released", "awaiting_approval", "held", "failed"),
    )
    op.create_index("ix_runs_line", "runs", ["tenant_id", "line", "started_at"])
    op.create_table(
        "steps",
        _tenant(),
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        _one_of("status", "ran", "reused", "failed"),
        _of_run(),
    )
    op.create_table(
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
    op.create_table(
        "receipts",
        _tenant(),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("step", sa.String(64), nullable=False),
        sa.Column("run_id", sa.String(64)),
        sa.Column("outputs", sa.JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )


def _data() -> None:
    uuid = _UUID_SQLITE if op.get_bind().dialect.name == "sqlite" else "gen_random_uuid()"
    op.create_table(
        "datasets",
        sa.Column("id", sa.Uuid(as_uuid=False), primary_key=True, server_default=sa.text(uuid)),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("dataset_type", sa.String(50), nullable=False),
        sa.Column("data_format", sa.String(20), nullable=False),
        sa.Column("source_type", sa.String(50), nullable=False),
        sa.Column("source_config", sa.JSON),
        sa.Column("schema_config", sa.JSON),
        sa.Column("statistics", sa.JSON),
        sa.Column("file_path", sa.Text),
        sa.Column("file_size", sa.BigInteger),
        sa.Column("row_count", sa.BigInteger),
        sa.Column("column_count", sa.Integer),
        sa.Column("quality_score", sa.Numeric(5, 4)),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("is_processed", sa.Boolean, nullable=False),
        sa.Column("processed_at", _TIME),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        _one_of("dataset_type", "training", "validation", "test"),
        _one_of("data_format", "csv", "json", "parquet", "image", "text"),
        _one_of("source_type", "upload", "database", "api", "stream"),
        sa.UniqueConstraint("tenant_id", "content_hash", "name", "dataset_type", name="uq_datasets_content"),
    )
    op.create_table(
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
        sa.Column("at", _TIME, nullable=False),
    )
    op.create_index("ix_predictions_line", "predictions", ["tenant_id", "line", "at"])


def _versions() -> None:
    op.create_table(
        "ledger",
        _tenant(),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("line", sa.String(200), nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("bundle_id", sa.String(64)),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("prev", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_index("ix_ledger_line", "ledger", ["tenant_id", "line", "seq"])
    op.create_table(
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
        sa.Column("archived_at", _TIME),
        sa.Column("created_at", _TIME, nullable=False),
        _one_of("state", "training", "validated", "staging", "production", "retired", "failed", "rolled_back"),
    )
    op.create_table(
        "aliases",
        _tenant(),
        sa.Column("line", sa.String(200), primary_key=True),
        sa.Column("alias", sa.String(32), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("bundle_id", sa.String(64), nullable=False),
        sa.Column("ledger_seq", sa.BigInteger, nullable=False),
        sa.Column("moved_at", _TIME, nullable=False),
        sa.Column("mirrored", sa.Boolean, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "line", "version"],
            ["versions.tenant_id", "versions.line", "versions.version"],
            name="fk_version",
        ),
    )


def _guards_sqlite() -> None:
    for action in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER ledger_no_{action.lower()} BEFORE {action} ON ledger"
            " BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        )
    # INSERT OR REPLACE would delete without asking the trigger above.
    op.execute(
        "CREATE TRIGGER ledger_no_replace BEFORE INSERT ON ledger"
        " WHEN EXISTS (SELECT 1 FROM ledger WHERE tenant_id = NEW.tenant_id AND seq = NEW.seq)"
        " BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    )
    op.execute(
        "CREATE TRIGGER versions_no_delete BEFORE DELETE ON versions"
        " BEGIN SELECT RAISE(ABORT, 'a version is archived, never deleted'); END"
    )
    op.execute(
        "CREATE TRIGGER versions_no_replace BEFORE INSERT ON versions WHEN EXISTS (SELECT 1 FROM versions"
        " WHERE tenant_id = NEW.tenant_id AND line = NEW.line AND version = NEW.version)"
        " BEGIN SELECT RAISE(ABORT, 'a registered version never changes'); END"
    )
    changed = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in (*_FIXED, "params", "metrics"))
    op.execute(
        f"CREATE TRIGGER versions_no_change BEFORE UPDATE ON versions WHEN {changed}"
        " BEGIN SELECT RAISE(ABORT, 'a registered version never changes'); END"
    )


def _guards_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION esteira_refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    for table, message in (
        ("ledger", "the ledger is append-only"),
        ("versions", "a version is archived, never deleted"),
    ):
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION esteira_refuse('{message}')"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION esteira_refuse('{message}')"
        )
    op.execute(
        "CREATE TRIGGER ledger_no_update BEFORE UPDATE ON ledger"
        " FOR EACH ROW EXECUTE FUNCTION esteira_refuse('the ledger is append-only')"
    )
    changed = " OR ".join(
        [f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in _FIXED]
        + [f"OLD.{name}::text IS DISTINCT FROM NEW.{name}::text" for name in ("params", "metrics")]
    )
    op.execute(
        f"CREATE TRIGGER versions_no_change BEFORE UPDATE ON versions FOR EACH ROW WHEN ({changed})"
        " EXECUTE FUNCTION esteira_refuse('a registered version never changes')"
    )
