"""The command line `esteira`. This module only knows the commands' names; a command's module is imported when it is called."""

import importlib
import sys
from collections.abc import Sequence

import click

from esteira.console import conduct, emit, fail, say, show

__all__ = ["COMMANDS", "cli", "emit", "fail", "main", "say", "show"]

# name -> (module, what it does): kept here as text, so that `--help` imports nothing else.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("project", "Write .env and params.yaml entries; safe to repeat."),
    "doctor": ("project", "Look at the installation and the back ends."),
    "data": ("project", "Write data/: real sample tables, the same bytes on every machine."),
    "families": ("project", "What can be trained."),
    "lines": ("project", "What has been trained, and what serves."),
    "run": ("run", "The whole DAG for one line, here."),
    "step": ("step", "One step of the DAG, on folders you name."),
    "explain": ("explain", "Why each step of a run ran or was reused."),
    "runs": ("runs", "Past runs: list, show, compare."),
    "compile": ("compile", "The DAG as KFP's IR YAML."),
    "submit": ("submit", "A line to Kubeflow Pipelines: a run, or a schedule."),
    "automl": ("automl", "A table in, the best model within a budget out; no project needed."),
    "predict": ("predict", "Rows in, answers out, from a bundle; or its latency."),
    "batch": ("batch", "Many rows answered in parts that survive a kill: file, folder or s3:// in and out."),
    "quantise": ("quantise", "A bundle with int8 weights, if its answers stay as good."),
    "serve": ("serve", "A line or a bundle as a Bento on loopback."),
    "release": ("release", "Versions, approvals, promotion: ls, show, stage, approve, withdraw, promote, retire."),
    "rollback": ("rollback", "Alias and traffic move back, in one command."),
    "keys": ("keys", "Who may do what: named keys with a role each."),
    "rollout": ("rollout", "A candidate's traffic: start, status, pause, resume, promote, rollback, tick."),
    "tick": ("tick", "One look at every rollout, or a loop of looks."),
    "simulate": ("simulate", "Thousands of rollouts on a synthetic clock: how often each policy is right."),
    "ledger": ("ledger", "The append-only record: log, at, export, anchor, verify."),
    "demo": ("demo", "Serve what the last run released and ask it one question."),
    "demo-release": ("demo_release", "Releases on a synthetic clock: a good, a bad and an unseen candidate."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"esteira.cli.{COMMANDS[cmd_name][0]}")
        # A command that is a word of Python's own is called name_ in its module.
        command: click.Command = getattr(module, "compile_" if cmd_name == "compile" else cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        from esteira import __version__

        click.echo(f"esteira {__version__}")
        ctx.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show a traceback when something unforeseen happens.")
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version.")
def cli(debug: bool) -> None:
    """From raw rows to a judged, registered, answering model, and the record that proves it.

    \b
    Example:
      esteira data && esteira run tabular && esteira serve tabular
      esteira run tabular --source customers.csv --target churned
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; ends the process with an exit code of DESIGN 9, rule 8 (0 ok, 1 said no, 2 wrong, 3 quota)."""
    conduct(cli, sys.argv[1:] if argv is None else argv, prog="esteira")
