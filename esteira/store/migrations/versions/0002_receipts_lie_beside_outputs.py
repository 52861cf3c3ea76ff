"""Receipts of steps lie beside the outputs that they tell of (pipelines/reuse.py), so the table of them goes; nobody used it."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the table."""
    op.drop_table("receipts")


def downgrade() -> None:
    """Receipts only spare work, so losing them loses nothing."""
    raise NotImplementedError("the way back is a backup; no row was ever kept here")
