"""A small seeded search, bounded by trials, over the kinds of estimators that a family declares; it reads no files.

The same rows, seed and number of trials give the same leaderboard to the last bit. See `esteira.family.Search`.
"""

import os

# Before anything loads libgomp: threads that spin while they wait made the same fit take 2 or 100 s on shared cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from esteira.automl.engine import Result, search
from esteira.automl.folds import Folds, plan_folds

__all__ = ["Folds", "Result", "plan_folds", "search"]
