"""The platform store: SQLAlchemy on SQLite or PostgreSQL, migrated by Alembic, every row with its tenant."""

from esteira.store.records import Alias, Dataset, Experiment, Prediction, Run, Step, Trial, Version
from esteira.store.store import Store, side_by_side

__all__ = [
    "Alias",
    "Dataset",
    "Experiment",
    "Prediction",
    "Run",
    "Step",
    "Store",
    "Trial",
    "Version",
    "side_by_side",
]
