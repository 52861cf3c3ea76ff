"""`esteira submit`: a line to Kubeflow Pipelines, as a run of now or by a schedule."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from esteira.cli import emit, say, show


@click.command()
@click.argument("line")
@click.option("--host", help="Address of Kubeflow Pipelines (default $ESTEIRA_KFP_HOST).")
@click.option("--source", help="s3:// or SQLAlchemy URL of the rows, or a path that the pods mount.")
@click.option("--target", help="Column that holds the label.")
@click.option("--as", "name_of_line", metavar="NAME", help="Name of the line: FAMILY@NAME.")
@click.option("--set", "settings", multiple=True, metavar="STEP.KEY=VALUE", help="A parameter of a step; repeatable.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of every random step (default 42).")
@click.option("--experiment", default="esteira", show_default=True, help="Experiment that the run belongs to.")
@click.option("--wait", is_flag=True, help="Wait for the end; exit 1 when validate or evaluate said no.")
@click.option("--every", default=5.0, show_default=True, type=click.FloatRange(0.01), help="Seconds between two looks.")
@click.option("--schedule", metavar="CRON", help="Run again and again, at the server's times, such as '30 3 * * *'.")
@click.option("--unschedule", is_flag=True, help="Remove the line's schedule.")
@click.option("--name", metavar="NAME", help="Name of the schedule (default: that of the line).")
@click.option("--allow-local-source", is_flag=True, help="The pods have the path that --source names.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def submit(
    line: str,
    host: str | None,
    source: str | None,
    target: str | None,
    name_of_line: str | None,
    settings: tuple[str, ...],
    seed: int | None,
    experiment: str,
    wait: bool,
    every: float,
    schedule: str | None,
    unschedule: bool,
    name: str | None,
    allow_local_source: bool,
    as_json: bool,
) -> int:
    """Send LINE's release pipeline to Kubeflow Pipelines and start or schedule a run.

    The pipeline is uploaded once for each content. A token is read from $ESTEIRA_KFP_TOKEN, never from the command.

    \b
    Example:
      esteira submit tabular --host https://kfp.example.org --source s3://bucket/rows.csv --target churned --wait
      esteira submit tabular --schedule '30 3 * * *'
      esteira submit tabular --unschedule
    """
    from esteira.errors import ConfigError
    from esteira.project import read_project
    from esteira.settings import load_settings
    from pipelines import ir_check
    from pipelines.compile import defaults, pipeline_name, write
    from pipelines.kubeflow import Kubeflow
    from pipelines.plan import decide, parse_settings
    from pipelines.resources import read_resources
    from pipelines.submit import check_source, cron_of

    if (schedule is not None) + unschedule + wait > 1:
        raise click.UsageError("--schedule, --unschedule and --wait exclude each other")
    if name is not None and schedule is None and not unschedule:
        raise click.UsageError("--name names a schedule: give --schedule or --unschedule too")
    config = load_settings()
    address = host or config.kfp_host
    if not address:
        raise ConfigError(
            "a line is submitted to a server, but none is known",
            code="no_host",
            where="--host",
            cure="--host https://kfp.example.org, or ESTEIRA_KFP_HOST",
        )
    token = config.kfp_token.get_secret_value() if config.kfp_token is not None else None
    project = read_project()
    if unschedule:
        from esteira.family import Line

        wanted = Line.parse(line if name_of_line is None else f"{line.split('@')[0]}@{name_of_line}")
        with Kubeflow(address, token, config.kfp_namespace) as server:
            removed = server.unschedule(pipeline_name(wanted), name or str(wanted))
        if as_json:
            emit({"line": str(wanted), "schedule": name or str(wanted), "removed": removed})
        else:
            show(f"removed {removed} schedule(s) named {name or wanted}")
        return 0
    plan = decide(
        line, project=project, source=source, target=target, name=name_of_line, seed=seed,
        settings=parse_settings(settings),
    )  # fmt: skip
    cron = cron_of(schedule) if schedule is not None else None
    resources = read_resources(plan.line.split("@")[0])
    check_source(plan.source, resources.volumes, allow_local=allow_local_source)
    if config.image_prefix == "localhost":
        say("note: images are localhost/...: the cluster's nodes must hold them, or set ESTEIRA_IMAGE_PREFIX")
    with tempfile.TemporaryDirectory(prefix="esteira-submit-") as folder:
        compiled = write(defaults(plan.line, project), Path(folder), resources=resources, prefix=config.image_prefix)
        for finding in ir_check.check(compiled.ir, prefix=config.image_prefix):
            raise ConfigError(
                f"{finding.rule}: {finding.message}",
                code="bad_pipeline",
                where=f"{plan.line}, {finding.where}",
                cure="correct params.yaml or the family's resources.yaml; `esteira compile LINE --check` names them all",
            )
        with Kubeflow(address, token, config.kfp_namespace) as server:
            uploaded = server.upload(compiled, f"Releases {plan.line}")
            say(f"{compiled.name}: {'uploaded' if uploaded.new else 'there already'} as {uploaded.version}")
            document: dict[str, Any] = {
                "line": plan.line,
                "pipeline": compiled.name,
                "version": uploaded.version,
                "uploaded": uploaded.new,
                "experiment": experiment,
            }
            code = 0
            answer = say if as_json else show
            if cron is not None:
                kept = server.schedule(uploaded, plan, cron=cron, name=name or plan.line, experiment=experiment)
                document |= {"schedule": name or plan.line, "cron": cron, "change": kept.change}
                document |= {"id": kept.id, "url": kept.url}
                answer(f"schedule {name or plan.line} {kept.change}: {cron}\n  {kept.url}")
            else:
                started = server.run(uploaded, plan, experiment=experiment)
                document |= {"run_id": started.id, "url": started.url, "status": "submitted"}
                answer(f"run {started.id}\n  {started.url}")
            if wait:
                code = _wait(server, started, every, document, answer)
    if as_json:
        emit(document)
    return code


def _wait(server: Any, started: Any, every: float, document: dict[str, Any], answer: Callable[[str], None]) -> int:
    """Tell how the run goes until it ended; its outcome goes into the document, its exit code back."""
    from esteira.errors import Refused

    def tell(step: str, state: str) -> None:
        if state != "PENDING":
            say(f"{step:<10} {state.lower()}")

    try:
        outcome = server.wait(started.id, tell, every=every)
    except KeyboardInterrupt:
        raise Refused(
            "stopped waiting before the run's end",
            code="interrupted",
            where=f"run {started.id}",
            cure=f"the run goes on whether we look or not: {started.url}",
        ) from None
    document |= {"status": outcome.status, "steps": outcome.steps, "message": outcome.message}
    said = f": {outcome.message}" if outcome.message else ""
    answer(f"run {started.id}: {click.style(outcome.status, bold=True)}{said}")
    return int(outcome.exit_code)
