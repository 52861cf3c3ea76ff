"""`esteira compile`: the DAG as KFP's IR YAML and as Kubernetes objects, and whether they hold together."""

from pathlib import Path
from typing import Any

import click

from esteira.cli import emit, show


@click.command("compile")
@click.argument("line", required=False)
@click.option(
    "--out", default="build/compiled", show_default=True, type=click.Path(file_okay=False), help="Folder to write."
)
@click.option("--batch", is_flag=True, help="Instead: the pipeline that answers rows in bulk, with checkpoints.")
@click.option("--check", is_flag=True, help="Verify what was written; exit 1 on any finding.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def compile_(line: str | None, out: str, batch: bool, check: bool, as_json: bool) -> int:
    """Compile LINE, or every family and line of params.yaml.

    Of each: LINE.yaml, IR YAML for KFP's UI, its client and `esteira submit`; and LINE.k8s.yaml, the same for kubectl.
    With --batch LINE.batch.yaml and LINE.batch.k8s.yaml. The images' registry is $ESTEIRA_IMAGE_PREFIX.

    \b
    Example:
      esteira compile
      esteira compile tabular --out build/compiled
      esteira compile --check
      esteira compile tabular --batch
    """
    from esteira.errors import ConfigError
    from esteira.project import read_project
    from esteira.settings import load_settings
    from pipelines import ir_check
    from pipelines.compile import defaults, write, write_batch

    prefix = load_settings().image_prefix
    project = read_project()
    lines = [line] if line else [*project.families, *project.lines]
    if not lines:
        raise ConfigError(
            "what is compiled is LINE or every block of params.yaml, but there is neither",
            code="no_lines",
            where="params.yaml",
            cure="name a line, or write params.yaml with `esteira init`",
        )
    files: list[str] = []
    findings: list[dict[str, Any]] = []
    for name in lines:
        compiled = (
            write_batch(name, Path(out), prefix=prefix)
            if batch
            else write(defaults(name, project), Path(out), prefix=prefix)
        )
        files += [str(compiled.ir), str(compiled.native)]
        if check:
            found = ir_check.check(compiled.ir, compiled.native, prefix=prefix)
            findings += [{**finding.to_dict(), "file": str(compiled.ir)} for finding in found]
    if as_json:
        emit({"files": files, **({"ok": not findings, "findings": findings} if check else {})})
    else:
        for file in files:
            show(file)
        for finding in findings:
            show(
                f"{click.style(finding['rule'], fg='red')}: {finding['file']}, {finding['where']}: {finding['message']}"
            )
        if check and not findings:
            show(f"checked {len(files)} files: nothing found")
    return 1 if findings else 0
