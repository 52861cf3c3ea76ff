"""The shape of the DAG, said once: which steps there are, what each needs, what each takes. Imports nothing heavy.

The kfp pipeline, the local runner, the command line and (later) the DVC stages are all made from STEPS.
"""

from dataclasses import dataclass, field
from typing import Literal

Imports = Literal["learn", "checks", "registry"]


@dataclass(frozen=True)
class Step:
    """One step of the DAG.

    Attributes:
        name: the module below `components/`, the section of params.yaml, the name of the kfp task.
        title: what a person reads in a list or in the KFP UI.
        needs: input name -> step whose output folder it is.
        takes: arguments of the whole pipeline that this step receives (besides its own section of params).
        imports: which preloaded process runs it here; steps that import the same heavy libraries share one.
    """

    name: str
    title: str
    needs: dict[str, str] = field(default_factory=dict)
    takes: tuple[str, ...] = ()
    imports: Imports = "learn"


STEPS: tuple[Step, ...] = (
    Step("ingest", "Read the rows and name their bytes", takes=("line", "source", "target")),
    Step(
        "validate",
        "Check every row against the contract",
        needs={"ingested": "ingest"},
        takes=("line", "target", "champion"),
        imports="checks",
    ),
    Step(
        "featurize",
        "Split and turn rows into numbers, fitted on training rows only",
        needs={"validated": "validate"},
        takes=("seed",),
    ),
    Step(
        "train",
        "Search for the best model within a number of trials",
        needs={"featurized": "featurize", "validated": "validate"},
        takes=("line", "seed"),
    ),
    Step(
        "evaluate",
        "Measure on held-back rows, boot the real server, judge",
        needs={"featurized": "featurize", "trained": "train", "validated": "validate", "ingested": "ingest"},
        takes=("line", "champion", "seed"),
    ),
    Step(
        "register",
        "Record the version with its lineage",
        needs={"evaluated": "evaluate", "trained": "train", "validated": "validate", "ingested": "ingest"},
        takes=("line", "run_id"),
        imports="registry",
    ),
    Step(
        "deploy",
        "Write the Bento and move the alias",
        needs={"registered": "register", "evaluated": "evaluate"},
        takes=("line",),
        imports="registry",
    ),
)

NAMES: tuple[str, ...] = tuple(step.name for step in STEPS)
