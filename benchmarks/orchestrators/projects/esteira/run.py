"""Six steps in a row on our runner: `python run.py RUN_ID`; a second run reuses what the receipts of the first still cover."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.code import hashes
from pipelines.reuse import Receipts
from pipelines.runner import Dag, run_dag
from pipelines.shape import Step

NAMES = ("one", "two", "three", "four", "five", "six")
STEPS = tuple(
    Step(name, f"Step {name}", needs={"before": NAMES[at - 1]} if at else {}, imports="kfp")
    for at, name in enumerate(NAMES)
)


def pipeline() -> Callable[..., Any]:
    from chain import chain

    return chain


def code(step: Step) -> dict[str, str]:
    return hashes([], functions=[f"chain.py::{step.name}"], root=Path())


if __name__ == "__main__":
    build = Path("build")
    for record in run_dag(Dag(STEPS, pipeline, code), {}, folder=build / sys.argv[1], receipts=Receipts(build)):
        print(record.name, record.status, record.why)
