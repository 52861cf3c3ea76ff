"""A study for tests, and a process that works on it: `python -m tests.study_worker STORAGE NAME LOG HANG_AT`."""

import math
import sys
import time
from pathlib import Path
from typing import Any

from esteira.automl import alive
from esteira.automl.prepare.recipe import Recipe
from esteira.automl.study import Proposal, Study, Told

SPACES: dict[str, Any] = {
    "trees": {
        "rate": ("log", 1e-3, 1.0),
        "leaves": ("log_int", 4, 256),
        "share": ("float", 0.5, 1),
        "depth": ("int", 2, 12),
        "layers": ("choice", [[32], [64, 32], None]),
    },
    "linear": {"C": ("log", 1e-3, 100.0)},
    "constant": {},
}
FIXED: dict[str, Any] = {"trees": {"rounds": 100}}
KINDS = tuple(SPACES)


def made(proposal: Proposal) -> dict[str, Any]:
    """A trial whose outcome depends on its parameters alone."""
    params = proposal.params
    if proposal.kind == "constant":
        return {"score": None, "why": "it fails", "folds": (0.1, 0.2)}
    if proposal.kind == "linear":
        return {"score": -abs(math.log(params["C"]))}
    return {"score": -abs(math.log(params["rate"] / 0.1)) - params["leaves"] / 100, "notes": {"rounds": 3}}


def begin(storage: str, seed: int = 1, name: str = "search") -> Study:
    """A study with its portfolio queued."""
    study = Study.open(storage, name=name, seed=seed, spaces=SPACES, fixed=FIXED)
    study.queue("constant", {}, Recipe(), "portfolio")
    # What was known to do well may lie outside what is searched.
    study.queue("trees", {"rate": 2.0, "leaves": 31, "share": 1.0, "depth": 6, "layers": (32,)}, Recipe(), "portfolio")
    study.queue("linear", {"C": 1.0}, Recipe(ratios=5), "recipe")
    return study


def go_on(study: Study, trials: int, batch: int = 1, die_at: int = 0) -> list[Told]:
    """Ask and tell until so many trials are made, or until one number is asked for."""
    while proposals := study.ask(batch, kinds=KINDS, limit=trials):
        for proposal in proposals:
            if proposal.number == die_at:
                return study.told()
            study.tell(proposal, **made(proposal))
    return study.told()


def main(storage: str, name: str, log: str, hang_at: str) -> None:
    """Make trials of a study of 16, and write the number of each before it; hang in the first from `hang_at` on."""
    alive.HEARTBEAT = 1
    told = 0
    with begin(storage, name=name) as study:
        while (proposals := study.ask(1, kinds=KINDS, limit=16)) or study.wait():
            for proposal in proposals:
                with Path(log).open("a") as file:
                    file.write(f"{proposal.number}\n")
                time.sleep(3600 if proposal.number >= int(hang_at) > 0 else 0.15)
                study.tell(proposal, **made(proposal))
                told += 1
    print(told)


if __name__ == "__main__":
    main(*sys.argv[1:])
