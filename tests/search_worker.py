"""A worker of a search for tests, which hangs with trials in its hands: `python -m tests.search_worker STORAGE HANG_AFTER`."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from esteira.automl import plan_folds
from esteira.automl.engine import work
from esteira.family import Candidate
from tests.test_automl import rows

X, Y = rows("binary")
WORDS: dict[str, Any] = {
    "task": "binary", "categorical": [3], "metric": "roc_auc", "trials": 14, "seed": 5,
    "candidates": [Candidate("lightgbm"), Candidate("linear"), Candidate("constant")],
    "folds": plan_folds(Y, task="binary", seed=5, count=3, repeats=1),
}  # fmt: skip


def main(storage: str, hang_after: str) -> None:
    """Tell so many trials, say `HANGS`, and go on no more."""

    def hang(done: int, _of: int, _row: Mapping[str, Any]) -> None:
        if done == int(hang_after):
            print("HANGS", flush=True)
            time.sleep(3600)

    work(X, Y, **WORDS, storage=storage, progress=hang)


if __name__ == "__main__":
    main(*sys.argv[1:])
