"""Batch predictions that a service was asked for (K-57): what, for whom, how far, and who works on it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "batch_jobs",
        sa.Column("tenant_id", sa.String(64), primary_key=True),
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
        sa.Column("failure", sa.JSON),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME),
        sa.Column("finished_at", _TIME),
        sa.Column("owner", sa.String(64)),
        sa.Column("beat_at", _TIME),
        sa.CheckConstraint("state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name="ck_state"),
    )
    op.create_index("ix_batch_jobs_state", "batch_jobs", ["tenant_id", "state", "created_at"])


def downgrade() -> None:
    """Drop the table; the answers lie where the jobs wrote them."""
    op.drop_table("batch_jobs")
