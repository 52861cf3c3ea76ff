"""The kfp door of every step: typed inputs and outputs, and a body that calls `components.<step>.run`.

A body is compiled into the pipeline's YAML as source text, so each imports what it uses and holds no logic of its own.
"""

# kfp reads the annotations of a component as objects, so `from __future__ import annotations` must stay away.
from kfp import dsl
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from pipelines.resources import image_name

# Of a run here only; what is compiled names the image that the family asks for, and the prefix of the registry.
IMAGE = image_name("pipeline")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(line: str, source: str, target: str, params: dict, out: Output[Dataset]):
    """Read the rows and name their bytes."""
    from pathlib import Path

    from components import ingest as step
    from pipelines.artefacts import describe

    report = step.run(
        source=source, target=target, line=line, out=Path(out.path), params=step.Params.model_validate(params)
    )
    describe(out, report)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate(
    line: str,
    target: str,
    champion: str,
    params: dict,
    ingested: Input[Dataset],
    out: Output[Dataset],
    page: Output[HTML],
):
    """Check every row against the contract; bad rows go to quarantine."""
    from pathlib import Path

    from components import validate as step
    from pipelines.artefacts import describe

    folder = Path(ingested.path)
    report = step.run(
        rows=folder / "rows.parquet", dataset=folder / "dataset.json", target=target, line=line,
        champion=champion, out=Path(out.path), params=step.Params.model_validate(params),
    )  # fmt: skip
    describe(out, report)
    Path(page.path).write_bytes((Path(out.path) / "report.html").read_bytes())


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def featurize(seed: int, params: dict, validated: Input[Dataset], out: Output[Dataset]):
    """Split, and turn rows into numbers by a decoder fitted on training rows only."""
    from pathlib import Path

    from components import featurize as step
    from pipelines.artefacts import describe

    folder = Path(validated.path)
    report = step.run(
        rows=folder / "rows.parquet", contract=folder / "contract.yaml", seed=seed,
        out=Path(out.path), params=step.Params.model_validate(params),
    )  # fmt: skip
    describe(out, report)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    line: str, seed: int, params: dict, featurized: Input[Dataset], validated: Input[Dataset], out: Output[Model]
):
    """Search for the best model within a number of trials."""
    from pathlib import Path

    from components import train as step
    from pipelines.artefacts import describe

    report = step.run(
        features=Path(featurized.path), contract=Path(validated.path) / "contract.yaml", line=line, seed=seed,
        out=Path(out.path), params=step.Params.model_validate(params),
    )  # fmt: skip
    describe(out, report)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def search(
    line: str, seed: int, worker: int, params: dict, featurized: Input[Dataset], validated: Input[Dataset],
    out: Output[Artifact],
):  # fmt: skip
    """Make trials of the search until none is left, beside other workers; a trial of one that is lost is another's."""
    from pathlib import Path

    from components import search as step
    from pipelines.artefacts import describe

    report = step.run(
        features=Path(featurized.path), contract=Path(validated.path) / "contract.yaml", line=line, seed=seed,
        worker=worker, params=step.Params.model_validate(params),
    )  # fmt: skip
    describe(out, report)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    line: str, champion: str, seed: int, params: dict, featurized: Input[Dataset], trained: Input[Model],
    validated: Input[Dataset], ingested: Input[Dataset], out: Output[Artifact], metrics: Output[Metrics],
    classification: Output[ClassificationMetrics], page: Output[HTML],
):  # fmt: skip
    """Measure on held-back rows, boot the real server, judge; a held gate fails this task, and so all after it."""
    from pathlib import Path

    from components import evaluate as step
    from pipelines.artefacts import describe, log_classification, log_scores

    report = step.run(
        features=Path(featurized.path), trained=Path(trained.path), contract=Path(validated.path) / "contract.yaml",
        dataset=Path(ingested.path) / "dataset.json", champion=champion, line=line, seed=seed, out=Path(out.path),
        params=step.Params.model_validate(params),
    )  # fmt: skip
    describe(out, report)
    log_scores(metrics, Path(out.path))
    log_classification(classification, Path(out.path), Path(featurized.path), Path(trained.path))
    Path(page.path).write_bytes((Path(out.path) / "report.html").read_bytes())


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    line: str, run_id: str, params: dict, evaluated: Input[Artifact], trained: Input[Model], validated: Input[Dataset],
    ingested: Input[Dataset], out: Output[Artifact],
):  # fmt: skip
    """Record the version with its lineage; refuses a bundle without a passed verdict or a complete card."""
    from pathlib import Path

    from components import register as step
    from pipelines.artefacts import describe

    report = step.run(
        evaluated=Path(evaluated.path), trained=Path(trained.path), dataset=Path(ingested.path) / "dataset.json",
        profile=Path(validated.path) / "profile.json", line=line, run_id=run_id, out=Path(out.path),
        params=step.Params.model_validate(params),
    )  # fmt: skip
    describe(out, report)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(line: str, params: dict, registered: Input[Artifact], evaluated: Input[Artifact], out: Output[Artifact]):
    """Write the Bento and move the alias."""
    from pathlib import Path

    from components import deploy as step
    from pipelines.artefacts import describe

    report = step.run(
        receipt=Path(registered.path) / "receipt.json", bundle=Path(evaluated.path) / "bundle", line=line,
        out=Path(out.path), params=step.Params.model_validate(params),
    )  # fmt: skip
    describe(out, report)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def batch(line: str, source: str, champion: str, destination: str, params: dict, out: Output[Dataset]):
    """Answer many rows in parts; a try that follows another goes on where that one ended."""
    from pathlib import Path

    from components import batch as step
    from pipelines.artefacts import describe

    report = step.run(
        source=source, line=line, champion=champion, destination=destination, out=Path(out.path),
        params=step.Params.model_validate(params),
    )  # fmt: skip
    describe(out, report)
