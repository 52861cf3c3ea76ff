"""Batch predictions wait in a queue and are begun a few times at most: when one was queued, and how often it was begun.

The third migration made these columns itself for a while, so they are added where they are missing.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the columns; jobs of before were queued when they were asked for."""
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("batch_jobs")}
    if "queued_at" not in there:
        op.add_column("batch_jobs", sa.Column("queued_at", _TIME))
        op.execute("UPDATE batch_jobs SET queued_at = created_at")
        with op.batch_alter_table("batch_jobs") as table:
            table.alter_column("queued_at", existing_type=_TIME, nullable=False)
    if "tries" not in there:
        op.add_column("batch_jobs", sa.Column("tries", sa.Integer, nullable=False, server_default="0"))
        with op.batch_alter_table("batch_jobs") as table:
            table.alter_column("tries", existing_type=sa.Integer, server_default=None)


def downgrade() -> None:
    """The columns go; what waits waits in the order in which it was asked for."""
    with op.batch_alter_table("batch_jobs") as table:
        table.drop_column("tries")
        table.drop_column("queued_at")
