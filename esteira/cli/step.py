"""`esteira step NAME`: one step of the DAG on folders you name, by the door that `python -m components.NAME` has."""

import click


class _Steps(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        from pipelines.shape import NAMES

        return list(NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        from components.door import command

        return command(cmd_name, f"esteira step {cmd_name}")

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
