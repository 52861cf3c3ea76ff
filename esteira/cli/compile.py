"""`esteira compile`: the DAG as KFP's IR YAML."""

from pathlib import Path

import click

from esteira.cli import emit, say


@click.command("compile")
@click.argument("line", required=False)
@click.option(
    "--out", default="build/compiled", show_default=True, type=click.Path(file_okay=False), help="Folder to write."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def compile_(line: str | None, out: str, as_json: bool) -> None:
    """Compile LINE, or every family and line of params.yaml.

    \b
    Example:
      esteira compile
      esteira compile tabular --out build/compiled
    """
    from pipelines.compile import write_ir
    from pipelines.plan import decide, read_project

    project = read_project()
    wanted = [line] if line else [*project.families, *project.lines]
    files = [str(write_ir(decide(name, project=project), Path(out))) for name in wanted]
    if as_json:
        emit({"files": files})
    else:
        for file in files:
            say(file)
