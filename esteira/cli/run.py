"""`esteira run`: decide the plan, run the DAG here, tell a person how it goes and a script how it went."""

import sys
from typing import Any, Literal

import click

from esteira.cli import emit, fail, say, show


@click.command()
@click.argument("line")
@click.option("--source", help="File, folder, s3:// or SQLAlchemy URL of the rows.")
@click.option("--target", help="Column that holds the label.")
@click.option("--as", "name", help="Name of the line: FAMILY@NAME.")
@click.option("--set", "settings", multiple=True, metavar="STEP.KEY=VALUE", help="A parameter of a step; repeatable.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of every random step (default 42).")
@click.option(
    "--from", "from_run", metavar="RUN_ID", help="Repeat a recorded run: its source, label, seed and parameters."
)
@click.option("--allow-leak", multiple=True, metavar="COL", help="Keep a column although it nearly copies the label.")
@click.option("--fresh", is_flag=True, help="Run every step, even one of which nothing changed.")
@click.option(
    "--runner", type=click.Choice(["process", "docker"]), default="process", show_default=True,
    help="Steps as processes, or each in its container (make images).",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def run(
    line: str,
    source: str | None,
    target: str | None,
    name: str | None,
    settings: tuple[str, ...],
    seed: int | None,
    from_run: str | None,
    allow_leak: tuple[str, ...],
    fresh: bool,
    runner: Literal["process", "docker"],
    as_json: bool,
) -> int:
    """Run the whole DAG for LINE here: ingest, validate, featurize, train, evaluate, register, deploy.

    A step of which nothing changed (parameters, data, code, packages) is reused, and says so. Deploy runs a new version in
    staging before it serves anybody (deploy.rehearse=false leaves that out, and the record says so).

    \b
    Example:
      esteira run tabular
      esteira run tabular --fresh
      esteira run tabular --source customers.csv --target churned --set train.trials=20
    """
    from esteira.project import read_project
    from esteira.settings import load_settings
    from pipelines import local
    from pipelines.plan import decide, parse_settings

    config = load_settings()
    sections = parse_settings(settings)
    if allow_leak:
        sections.setdefault("validate", {})["allow_leak"] = list(allow_leak)
    if from_run is not None:
        given = {"--source": source, "--target": target, "--as": name, "--set": settings, "--allow-leak": allow_leak}
        recorded = _recorded(config, line, from_run, [option for option, value in given.items() if value])
        plan = recorded.model_copy(update={} if seed is None else {"seed": seed})
    else:
        plan = decide(
            line, project=read_project(), source=source, target=target, name=name, seed=seed, settings=sections,
            last=_last(config, line, name) if source is None or target is None else None,
        )  # fmt: skip
    display: Any = _Lines() if as_json or not sys.stderr.isatty() else _live()
    result = local.run(plan, config, display, fresh=fresh, runner=runner)
    if as_json:
        emit(result.to_dict())
    else:
        _tell(result)
        if result.error is not None:
            fail(result.error, as_json=False)
    return result.exit_code


def _recorded(settings: Any, line: str, run_id: str, given: list[str]) -> Any:
    """The plan of a recorded run of the line.

    Raises:
        ConfigError: the run is unknown, of another line or keeps no plan; or options were `given` that a repeat takes from
            the record, so that it would be no repeat.
    """
    from pydantic import ValidationError

    from esteira.errors import ConfigError
    from esteira.store import Store
    from pipelines.plan import Plan

    if given:
        raise ConfigError(
            f"a repeat takes all but --seed from its record, but {', '.join(given)} was given too",
            code="not_a_repeat", where="--from", cure=f"leave {', '.join(given)} out, or --from",
        )  # fmt: skip
    found = Store.open(settings.database_url, settings.tenant).get_run(run_id)
    # A line that a run opened by its source may be repeated by the words that opened it: the family alone.
    if line not in {found.line, found.line.partition("@")[0]}:
        raise ConfigError(
            f"a run is repeated for its own line, but {run_id} is of {found.line}, not of {line}",
            code="other_line", where="--from", cure=f"esteira run {found.line} --from {run_id}",
        )  # fmt: skip
    try:
        return Plan.model_validate(found.params)
    except ValidationError as error:
        raise ConfigError(
            f"a run is repeated from the plan in its record, but the record of {run_id} holds none",
            code="no_plan", where="--from", cure="runs of `esteira run` keep their plan; others are repeated where they ran",
        ) from error  # fmt: skip


def _last(settings: Any, line: str, name: str | None) -> dict[str, str]:
    """Source and label of the line's last run, if it had one."""
    wanted = line if name is None else f"{line.split('@')[0]}@{name}"
    if "@" not in wanted:
        return {}
    from esteira.store import Store

    for past in Store.open(settings.database_url, settings.tenant).list_runs(wanted, limit=1):
        plan = past.params
        return {"source": str(plan.get("source", "")), "target": str(plan.get("target", ""))}
    return {}


def _tell(result: Any) -> None:
    from pipelines import parity

    say("")
    show(f"{result.line}  run {result.run_id}: {click.style(result.status, bold=True)}")
    if result.version is not None:
        show(f"  version {result.version}  bundle {result.bundle_id[:12]}  {result.bundle}")
    for key, value in result.metrics.items():
        if value is not None:
            beside = result.baseline.get(key)
            show(f"  {key:<22} {value:.4f}" + (f"   (constant baseline {beside:.4f})" if beside is not None else ""))
    for rule in result.gate:
        colour = {"PASS": "green", "FAIL": "red"}.get(rule["outcome"], "yellow")
        show(f"  {click.style(rule['outcome'], fg=colour):<16} {rule['rule']}")
    for text in parity.summary(result.parity).splitlines():
        show(f"  {text}")
    pages = sorted(result.folder.glob("*/report.html"))
    for page in pages:
        show(f"  read: {page}")
    if result.status == "released":
        say(f"  next: esteira serve {result.line}")
    elif result.status == "awaiting_approval":
        say(
            f"  next: an approver, who did not register it: esteira release approve {result.line} {result.version} --reason TEXT"
        )


class _Lines:
    """One line a step on standard error."""

    def started(self, step: Any) -> None:
        pass

    def progress(self, step: Any, done: int, total: int, note: str) -> None:
        pass

    def tick(self) -> None:
        pass

    def ended(self, step: Any, record: Any) -> None:
        mark = {"ran": "ok"}.get(record.status, record.status)
        say(f"{step.name:<10} {mark:<7} {record.seconds:6.2f} s  {click.style(record.why, dim=True)}")


def _live() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    # No refresh thread: a process with threads is a poor one to fork from.
    bars = Progress(
        SpinnerColumn(), TextColumn("{task.description:<64}"), BarColumn(bar_width=20), TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"), console=Console(stderr=True), auto_refresh=False, transient=True,
    )  # fmt: skip

    class Live(_Lines):
        def started(self, step: Any) -> None:
            bars.start()
            self.task = bars.add_task(f"{step.name}: {step.title}", total=None, note="")

        def progress(self, step: Any, done: int, total: int, note: str) -> None:
            bars.update(self.task, total=total, completed=done, note=note)

        def tick(self) -> None:
            bars.refresh()

        def ended(self, step: Any, record: Any) -> None:
            bars.remove_task(self.task)
            bars.stop()
            super().ended(step, record)

    return Live()
