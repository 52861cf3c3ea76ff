"""Writes the release pipeline as KFP's IR YAML, with a line's source, label, seed and parameters as its defaults."""

from pathlib import Path

from kfp import compiler

from esteira.family import Line
from pipelines.dag import release
from pipelines.plan import Plan


def write_ir(plan: Plan, folder: Path) -> Path:
    """Compile one line's pipeline.

    Args:
        plan: decides the defaults of the pipeline's parameters; a submitter may change them.
        folder: gets `<registered name of the line>.yaml`; created.

    Returns:
        The file, whole or not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = Line.parse(plan.line).registered_name
    final, temporary = folder / f"{name}.yaml", folder / f".{name}.tmp.yaml"
    compiler.Compiler().compile(
        release,
        str(temporary),
        pipeline_name=f"esteira-{name.replace('_', '-').replace('.', '-')}",
        pipeline_parameters={
            "line": plan.line,
            "source": plan.source,
            "target": plan.target,
            "seed": plan.seed,
            **plan.sections,
        },
        type_check=True,
    )
    temporary.replace(final)
    return final
