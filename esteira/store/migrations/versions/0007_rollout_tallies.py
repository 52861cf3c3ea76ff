"""Users of an experiment, so that each counts once in whichever process it is served (S-37)."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; experiments that are under way end as inconclusive, because what they counted were requests."""
    op.create_table(
        "rollout_tallies",
        sa.Column("tenant_id", sa.String(64), primary_key=True),
        sa.Column("test_id", sa.String(200), primary_key=True),
        sa.Column("arm", sa.String(16), primary_key=True),
        sa.Column("unit", sa.String(16), primary_key=True),
        sa.Column("served", sa.Integer, nullable=False),
        sa.Column("outcomes", sa.JSON, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("arm IN ('candidate', 'control')", name="ck_arm"),
    )
    op.create_index("ix_rollout_tallies_at", "rollout_tallies", ["tenant_id", "at"])


def downgrade() -> None:
    """Drop the table; what was summed up of it stays."""
    op.drop_table("rollout_tallies")
