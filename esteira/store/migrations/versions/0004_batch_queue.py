"""The queue of batch predictions: when each was put at its end, and how often it was begun. A job may go behind the others."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add both; jobs that are there wait in the order in which they were asked for, and count as never begun."""
    # For a while 0003 itself made the table as it is after this migration; a store of that time has nothing to gain.
    if "queued_at" in {column["name"] for column in sa.inspect(op.get_bind()).get_columns("batch_jobs")}:
        return
    op.drop_index("ix_batch_jobs_state", table_name="batch_jobs")
    op.add_column("batch_jobs", sa.Column("queued_at", _TIME))
    op.add_column("batch_jobs", sa.Column("tries", sa.Integer))
    op.execute("UPDATE batch_jobs SET queued_at = created_at, tries = 0")
    # SQLite changes no column: there the table is made anew, with its rows and its check.
    with op.batch_alter_table("batch_jobs") as table:
        table.alter_column("queued_at", existing_type=_TIME, nullable=False)
        table.alter_column("tries", existing_type=sa.Integer, nullable=False)
    op.create_index("ix_batch_jobs_state", "batch_jobs", ["tenant_id", "state", "queued_at"])
    op.create_index("ix_batch_jobs_created", "batch_jobs", ["tenant_id", "created_at"])


def downgrade() -> None:
    """The order of the queue would be lost."""
    raise NotImplementedError("the way back is a backup; the jobs of this queue know an order that 0003 cannot hold")
