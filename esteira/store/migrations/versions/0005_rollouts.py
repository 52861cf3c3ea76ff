"""What the arms of a rollout did (H-41): running sums of each writer, and the answers whose truth may still come."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "rollout_sums",
        sa.Column("tenant_id", sa.String(64), primary_key=True),
        sa.Column("test_id", sa.String(200), primary_key=True),
        sa.Column("stage", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("arm", sa.String(16), primary_key=True),
        sa.Column("source", sa.String(64), primary_key=True),
        sa.Column("sums", sa.JSON, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.CheckConstraint("arm IN ('candidate', 'control')", name="ck_arm"),
    )
    op.create_table(
        "rollout_units",
        sa.Column("tenant_id", sa.String(64), primary_key=True),
        sa.Column("test_id", sa.String(200), primary_key=True),
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("row_index", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("line", sa.String(200), nullable=False),
        sa.Column("unit", sa.String(16), nullable=False),
        sa.Column("arm", sa.String(16), nullable=False),
        sa.Column("stage", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("answer", sa.JSON, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("outcome", sa.Float),
        sa.Column("labelled_at", _TIME),
        sa.CheckConstraint("arm IN ('candidate', 'control')", name="ck_arm"),
    )
    op.create_index("ix_rollout_units_request", "rollout_units", ["tenant_id", "request_id", "row_index"])
    op.create_index("ix_rollout_units_unit", "rollout_units", ["tenant_id", "unit", "at"])
    op.create_index("ix_rollout_units_at", "rollout_units", ["tenant_id", "at"])


def downgrade() -> None:
    """Drop the tables; rollouts keep in their own files what was decided of them."""
    op.drop_table("rollout_units")
    op.drop_table("rollout_sums")
