"""The shape of the DAG, said once: which steps there are, what each needs, what each takes. Imports nothing heavy.

The kfp pipeline, the local runner and the command line are made from STEPS; a test holds the DVC stages against them.
"""

from dataclasses import dataclass, field
from typing import Literal

Imports = Literal["learn", "checks", "registry", "kfp"]


@dataclass(frozen=True)
class Step:
    """One step of the DAG.

    Attributes:
        name: the module below `components/`, the section of params.yaml, the name of the kfp task.
        title: what a person reads in a list or in the KFP UI.
        needs: input name -> step whose output folder it is.
        takes: arguments of the whole pipeline that this step receives (besides its own section of params).
        imports: which preloaded process runs it here; steps that import the same heavy libraries share one.
        family: globs of the family's files that the step reads, besides what its module imports.
        files: globs of other files of the repository that it reads.
    """

    name: str
    title: str
    needs: dict[str, str] = field(default_factory=dict)
    takes: tuple[str, ...] = ()
    imports: Imports = "learn"
    family: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


STEPS: tuple[Step, ...] = (
    Step("ingest", "Read the rows and name their bytes", takes=("line", "source", "target")),
    Step(
        "validate",
        "Check every row against the contract",
        needs={"ingested": "ingest"},
        takes=("line", "target", "champion"),
        imports="checks",
        family=("*.py",),
    ),
    Step(
        "featurize",
        "Split and turn rows into numbers, fitted on training rows only",
        needs={"validated": "validate"},
        takes=("seed",),
        family=("*.py",),
    ),
    Step(
        "train",
        "Search for the best model within a number of trials",
        needs={"featurized": "featurize", "validated": "validate"},
        takes=("line", "seed"),
        family=("*.py",),
        files=("esteira/automl/portfolio.json",),
    ),
    Step(
        "evaluate",
        "Measure on held-back rows, boot the real server, judge",
        needs={"featurized": "featurize", "trained": "train", "validated": "validate", "ingested": "ingest"},
        takes=("line", "champion", "seed"),
        family=("*.py", "gate.yaml", "README.md"),
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
        # The Bento carries a copy of all of these.
        files=("esteira/**/*", "families/**/*", "serving/**/*", "requirements/serving.lock"),
    ),
)

NAMES: tuple[str, ...] = tuple(step.name for step in STEPS)

SEARCH = Step(
    "search",
    "Make trials of the search, one of several workers",
    needs={"featurized": "featurize", "validated": "validate"},
    takes=("line", "seed"),
    family=("*.py",),
)
"""What runs side by side before train on a cluster, once train.workers is above 1: no step of its own. It receives train's
section, asks for what train asks for, and leaves nothing but what it told the study that train ends."""

BATCH = Step(
    "batch", "Answer many rows in parts, with checkpoints", takes=("line", "source", "champion", "destination")
)
"""A pipeline of its own, with this one step: no step of the DAG."""
