"""Who asked for a version to go to production and who let it (S-40); what a version is and since when it serves (K-05, K-53)."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
# What may never change in a registered version: as in 0001, and what it is.
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
_NEW = ("model_type", "algorithm", "framework")


def upgrade() -> None:
    """Make the table and the columns; versions that are there already say nothing of the new ones."""
    op.create_table(
        "approvals",
        sa.Column("tenant_id", sa.String(64), primary_key=True),
        sa.Column("line", sa.String(200), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("bundle_id", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("requested_by", sa.String(200), nullable=False),
        sa.Column("requested_at", _TIME, nullable=False),
        sa.Column("hours", sa.Float, nullable=False),
        sa.Column("policy", sa.JSON, nullable=False),
        sa.Column("approver", sa.String(200)),
        sa.Column("approved_at", _TIME),
        sa.Column("expires_at", _TIME),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("ledger_seq", sa.BigInteger, nullable=False),
        sa.CheckConstraint("state IN ('requested', 'approved', 'used', 'void')", name="ck_state"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "line", "version"],
            ["versions.tenant_id", "versions.line", "versions.version"],
            name="fk_approved_version",
        ),
    )
    op.add_column("versions", sa.Column("deployed_at", _TIME))
    for name in _NEW:
        op.add_column("versions", sa.Column(name, sa.String(100)))
    _guard((*_FIXED, *_NEW))


def downgrade() -> None:
    """Drop them; the ledger keeps what was decided."""
    _guard(_FIXED)
    for name in ("deployed_at", *_NEW):
        op.drop_column("versions", name)
    op.drop_table("approvals")


def _guard(fixed: tuple[str, ...]) -> None:
    """Let the database itself refuse a change of any of these columns."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER versions_no_change ON versions")
        changed = " OR ".join(
            [f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in fixed]
            + [f"OLD.{name}::text IS DISTINCT FROM NEW.{name}::text" for name in ("params", "metrics")]
        )
        op.execute(
            f"CREATE TRIGGER versions_no_change BEFORE UPDATE ON versions FOR EACH ROW WHEN ({changed})"
            " EXECUTE FUNCTION esteira_refuse('a registered version never changes')"
        )
        return
    op.execute("DROP TRIGGER versions_no_change")
    changed = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in (*fixed, "params", "metrics"))
    op.execute(
        f"CREATE TRIGGER versions_no_change BEFORE UPDATE ON versions WHEN {changed}"
        " BEGIN SELECT RAISE(ABORT, 'a registered version never changes'); END"
    )
