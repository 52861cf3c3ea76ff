"""`esteira step NAME`: one step of the DAG on folders you name; its options are read off the step's own `run`."""

import importlib
import inspect
import os
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import click
import yaml

from esteira.cli import emit, say


class _Steps(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        from pipelines.shape import NAMES

        return list(NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return command_of(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from pipelines.shape import STEPS

        with formatter.section("Steps"):
            formatter.write_dl([(step.name, step.title) for step in STEPS])


@click.group(cls=_Steps)
def step() -> None:
    """Run one step; `esteira step STEP --help` lists its paths and parameters.

    \b
    Example:
      esteira step ingest --source data/wine.csv --target cultivar --line tabular@wine --out build/wine/ingest
    """


def command_of(name: str) -> click.Command:
    """The click command of `components.<name>.run`, options in the order of its signature."""
    # Before anything loads OpenMP, see pipelines.local.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    module = importlib.import_module(f"components.{name}")
    hints = get_type_hints(module.run)
    options: list[click.Parameter] = []
    for parameter in inspect.signature(module.run).parameters.values():
        if parameter.name == "params":
            continue
        kind = hints[parameter.name]
        required = parameter.default is inspect.Parameter.empty
        if isinstance(kind, UnionType):
            kind = next(part for part in get_args(kind) if part is not type(None))
        types: dict[Any, Any] = {Path: click.Path(path_type=Path), int: click.INT, str: click.STRING}
        options.append(
            click.Option(
                [f"--{parameter.name.replace('_', '-')}", parameter.name],
                type=types[kind],
                required=required,
                default=None if required else parameter.default,
            )
        )
    fields = module.Params.model_fields
    listing = "\n".join(f"  {key} = {field.get_default(call_default_factory=True)!r}" for key, field in fields.items())
    options.append(
        click.Option(["--set", "settings"], multiple=True, metavar="KEY=VALUE", help="A parameter; repeatable.")
    )
    options.append(click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document."))
    summary = (inspect.getdoc(module.run) or "").split("\n\n")[0]
    example = f"\b\nExample:\n  esteira step {name} " + " ".join(
        f"{option.opts[0]} ..." for option in options if option.required
    )
    return click.Command(
        name,
        params=options,
        callback=lambda **given: _call(module, given),
        help=f"{summary}\n\n\b\nParameters for --set:\n{listing}\n\n{example}",
    )


def _call(module: Any, given: dict[str, Any]) -> None:
    from pydantic import ValidationError

    from esteira.errors import ConfigError

    as_json, settings = given.pop("as_json"), given.pop("settings")
    values: dict[str, Any] = {}
    for pair in settings:
        key, _, text = pair.partition("=")
        values[key.strip()] = yaml.safe_load(text)
    try:
        params = module.Params.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            code="bad_params",
            where="--set",
            cure=f"parameters are {', '.join(module.Params.model_fields)}",
        ) from error
    report = module.run(**given, params=params)
    if as_json:
        emit(report.model_dump(mode="json"))
    else:
        for key, value in report.model_dump(mode="json").items():
            say(f"{key:<20} {value}")
