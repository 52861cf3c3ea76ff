"""`esteira init`, `doctor`, `data`, `families`, `lines`: what is here, and is it well."""

from pathlib import Path
from typing import Any

import click

from esteira.cli import emit, say, show


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def init(as_json: bool) -> None:
    """Write .env and params.yaml entries into this folder; a second run changes nothing.

    \b
    Example:
      esteira init
    """
    from esteira.settings import write_env

    written = [f".env: {name}" for name in write_env(Path(".env"))]
    params = Path("params.yaml")
    if not params.exists():
        temporary = params.with_suffix(".tmp")
        temporary.write_text(_PARAMS, encoding="utf-8")
        temporary.replace(params)
        written.append("params.yaml")
    if as_json:
        emit({"written": written})
    else:
        show("nothing to write" if not written else f"wrote {len(written)} entries: " + ", ".join(written[:6]) + " ...")


_PARAMS = """\
# One block a family. A step receives only its own section; what is not said here has its default.
families:
  tabular:
    source: data/breast_cancer.csv
    target: diagnosis
"""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(as_json: bool) -> int:
    """Look at the installation and the back ends; exits 1 when something needed is missing.

    \b
    Example:
      esteira doctor
    """
    from esteira.doctor import examine
    from esteira.settings import load_settings

    checks = examine(load_settings())
    if as_json:
        emit({"checks": checks})
    else:
        for check in checks:
            mark = click.style("ok  ", fg="green") if check["ok"] else click.style("FAIL", fg="red")
            show(f"{mark} {check['name']:<22} {check['detail']}")
    return 0 if all(check["ok"] for check in checks) else 1


@click.command()
@click.option("--out", default="data", show_default=True, help="Folder to write.")
@click.option(
    "--pull", is_flag=True, help="From DVC's remote where there is one ($ESTEIRA_DVC_REMOTE); else write them."
)
@click.option("--push", is_flag=True, help="Put data/ into DVC's remote, for others to pull.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def data(out: str, pull: bool, push: bool, as_json: bool) -> None:
    """Write real sample tables (bundled with scikit-learn) as CSV, the same bytes on every machine.

    \b
    Example:
      esteira data
      ESTEIRA_DVC_REMOTE=s3://bucket/prefix esteira data --pull
    """
    if (pull and push) or ((pull or push) and out != "data"):
        raise click.UsageError("--pull and --push are about data/, so they take neither each other nor --out")
    if (pull or push) and (remote := _exchange(push=push)):
        if as_json:
            emit({"remote": remote, "pushed" if push else "pulled": "data"})
        else:
            show(f"data/  {'pushed to' if push else 'pulled from'} DVC's remote {remote}")
        return
    from esteira.datasets import write_data

    files = write_data(Path(out))
    if as_json:
        emit(files)
    else:
        for file in files:
            show(f"{file['path']}  {file['rows']} rows, label {file['label']} ({file['task']})")


def _exchange(*, push: bool) -> str:
    """Push or pull data/; the remote's name, empty when there is none to pull from."""
    from esteira import data_remote
    from esteira.errors import ConfigError
    from esteira.settings import load_settings

    here = Path()
    remote = data_remote.remote(load_settings().dvc_remote, here)
    if push and not remote:
        raise ConfigError(
            "data are pushed to a remote, but none is set",
            code="no_remote", where="ESTEIRA_DVC_REMOTE", cure="set it to a folder or s3://bucket/prefix, or use `dvc remote add`",
        )  # fmt: skip
    if push:
        data_remote.push(here)
    elif remote:
        data_remote.pull(here)
    return remote


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def families(as_json: bool) -> None:
    """List the families: what can be trained.

    \b
    Example:
      esteira families
    """
    import importlib.util

    from esteira.family import load_family

    found: list[dict[str, Any]] = []
    spec = importlib.util.find_spec("families")
    for root in (spec.submodule_search_locations or []) if spec else []:
        names = sorted(folder.parent.name for folder in Path(root).glob("*/__init__.py"))
        found += [{"name": name, "kind": load_family(name).artefact_kind} for name in names]
    if as_json:
        emit(found)
    else:
        for family in found:
            show(f"{family['name']:<20} {family['kind']}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def lines(as_json: bool) -> None:
    """List the model lines: champion and state of each, and the rollout that is under way.

    \b
    Example:
      esteira lines
    """
    from esteira.registry import Registry
    from esteira.settings import load_settings
    from esteira.store import Store

    settings = load_settings()
    registry = Registry(settings)
    runs = Store.open(settings.database_url, settings.tenant).list_runs()
    last = {run.line: run.status for run in reversed(runs)}
    found: list[dict[str, Any]] = []
    for line in sorted({*last, *registry.lines()}):
        champion = registry.resolve(line)
        state = "production" if champion else {"running": "training"}.get(last[line], last[line])
        number = champion.version if champion else None
        found.append({"line": line, "champion": number, "state": state, "rollout": _rollout(settings.home, line)})
    if as_json:
        emit(found)
    elif not found:
        say("no line yet: `esteira run tabular` opens the first")
    else:
        for entry in found:
            text = f"{entry['line']:<40} champion {entry['champion'] or '-':<6} {entry['state']}"
            if (test := entry["rollout"]) is not None:
                share = "" if test["percent"] is None else f" at {test['percent']:g} %"
                text += f"  rollout of version {test['version'] or '?'}: {test['status']}{share}"
            show(text)


def _rollout(home: Path, line: str) -> dict[str, Any] | None:
    """The rollout that is under way by its file alone: candidate, status, percent of the traffic; None without one."""
    from esteira.errors import Refused
    from esteira.rollout import files
    from esteira.rollout.state import under_way

    try:
        state = files.load(home, line)
    except Refused:
        return {"version": None, "status": "unreadable", "percent": None}
    if state is None or not under_way(state):
        return None
    return {"version": state.challenger.version, "status": state.status, "percent": state.percent}
