"""`esteira explain`: why each step of a recorded run ran or was reused: which parameter, datum, file or package changed."""

import click

from esteira.cli import emit, show


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def explain(run: str, as_json: bool) -> None:
    """Say why each step of RUN ran or was reused. RUN is a run's id, or a line: its newest run.

    \b
    Example:
      esteira explain 20260101T000000-abc123
      esteira explain tabular --json
    """
    from esteira.errors import ConfigError
    from esteira.settings import load_settings
    from esteira.store import Store

    settings = load_settings()
    store = Store.open(settings.database_url, settings.tenant)
    found = store.find_run(run) or next(iter(store.list_runs(run, limit=1)), None)
    if found is None:
        raise ConfigError(
            f"a run is named by its id or its line, but there is none called {run!r}",
            code="unknown_run",
            where="RUN",
            cure="`esteira runs list` shows what there is",
        )
    steps = [step.to_dict() for step in store.steps(found.run_id)]
    if as_json:
        emit({"run_id": found.run_id, "line": found.line, "status": found.status, "steps": steps})
        return
    show(f"{found.line}  run {found.run_id}: {found.status}")
    for step in steps:
        show(f"{step['name']:<10} {step['status']:<7} {step['seconds']:6.2f} s  {step['why']}")
