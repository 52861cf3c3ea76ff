"""The platform store: SQLAlchemy on SQLite or PostgreSQL, migrated by Alembic, every row with its tenant."""

from esteira.store.batch_jobs import BatchJobs
from esteira.store.records import Alias, BatchJob, Dataset, Experiment, Prediction, Run, Step, Trial, Version
from esteira.store.store import Store, side_by_side

__all__ = [
    "Alias",
    "BatchJob",
    "BatchJobs",
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
