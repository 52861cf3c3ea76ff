"""`esteira runs`: list, show and compare recorded runs; works without any tracking server."""

from typing import TYPE_CHECKING

import click

from esteira.cli import emit, show

if TYPE_CHECKING:
    from esteira.store import Store


def _open() -> "Store":
    from esteira.settings import load_settings
    from esteira.store import Store

    settings = load_settings()
    return Store.open(settings.database_url, settings.tenant)


@click.group()
def runs() -> None:
    """Past runs and their trials.

    \b
    Example:
      esteira runs list
    """


@runs.command("list")
@click.option("--line", help="Only runs of this line.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_(line: str | None, as_json: bool) -> None:
    """List runs, newest first.

    \b
    Example:
      esteira runs list --line tabular
    """
    found = _open().list_runs(line)
    if as_json:
        emit([run.to_dict() for run in found])
        return
    for run in found:
        show(f"{run.run_id}  {run.line:<32} {run.status:<10} v{run.version or '-'}")


@runs.command("show")
@click.argument("run_id")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show_(run_id: str, as_json: bool) -> None:
    """Show one run: its parameters, steps, trials, metrics.

    \b
    Example:
      esteira runs show 20260101T000000-abc123
    """
    store = _open()
    run = store.get_run(run_id)
    steps = [step.to_dict() for step in store.steps(run_id)]
    trials = [trial.to_dict() for trial in store.trials(run_id)]
    document = {**run.to_dict(), "steps": steps, "trials": trials}
    if as_json:
        emit(document)
        return
    for key, value in document.items():
        if isinstance(value, list):
            show(f"{key}:")
            for entry in value:
                show("  " + "  ".join(f"{name}={text}" for name, text in entry.items() if text is not None))
        else:
            show(f"{key:<12} {value}")


@runs.command()
@click.argument("first")
@click.argument("second")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def compare(first: str, second: str, as_json: bool) -> None:
    """Two runs side by side: parameters and metrics that differ.

    \b
    Example:
      esteira runs compare RUN_A RUN_B
    """
    document = _open().compare_runs(first, second)
    if as_json:
        emit(document)
        return
    for kind, entries in document.items():
        show(f"{kind}:")
        for name, values in entries.items() if isinstance(entries, dict) else []:
            show(f"  {name:<32} {values}")
