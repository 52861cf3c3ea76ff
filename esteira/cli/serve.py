"""`esteira serve`: hands over to the serving room's own process, so that signals reach it directly."""

import os
import sys

import click

from esteira.cli import say


@click.command()
@click.argument("lines", nargs=-1)
@click.option("--bundle", type=click.Path(file_okay=False), help="Serve this bundle folder instead of lines.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port on loopback (default 8080; 0 picks a free one).")
@click.option(
    "--alias",
    type=click.Choice(["champion", "challenger", "staging", "previous"]),
    help="Serve and follow this alias of LINES (default: ESTEIRA_ALIAS, else champion); challenger is the second service "
    "behind a proxy that splits a rollout's traffic.",
)
def serve(lines: tuple[str, ...], bundle: str | None, port: int | None, alias: str | None) -> None:
    """Answer over HTTP: LINES by their champions (followed when an alias moves), or one bundle.

    \b
    Example:
      esteira serve tabular --port 8080
      esteira serve tabular --alias challenger --port 8081
      esteira serve --bundle build/my-bundle
    """
    from esteira.errors import ConfigError
    from esteira.settings import api_key, load_settings

    if bool(lines) == bool(bundle):
        raise ConfigError(
            "serve takes either LINES or --bundle DIR",
            code="usage",
            where="esteira serve",
            cure="see `esteira serve --help`",
        )
    if bundle and alias:
        raise ConfigError(
            "an alias names a version of a line, but --bundle was given",
            code="usage",
            where="esteira serve",
            cure="leave --alias out, or serve LINES",
        )
    if alias is not None:
        os.environ["ESTEIRA_ALIAS"] = alias
    settings = load_settings()
    key, made = api_key(settings)
    if made:
        say(f"API key, made now and kept in {settings.home} (shown only this once): {key}")
    command = [sys.executable, "-m", "serving", "serve", "--detached"]
    for line in lines:
        command += ["--line", line]
    if bundle:
        command += ["--bundle", bundle]
    if port is not None:
        command += ["--port", str(port)]
    os.environ["ESTEIRA_API_KEY"] = key
    sys.stdout.flush()
    os.execv(sys.executable, command)
