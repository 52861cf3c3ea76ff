"""The command line of every step, made from the signature, docstring and Params of `components.<step>.run`; no step is named here.

`python -m components.<step>`, a stage of dvc.yaml and `esteira step <step>` are this one command.
"""

import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import click

from esteira import strict_yaml
from esteira.console import conduct, emit, say
from esteira.errors import ConfigError, SourceError
from esteira.family import Line

_TYPES: dict[Any, Any] = {Path: click.Path(exists=True, path_type=Path), int: click.INT, str: click.STRING}


def main(step: str) -> None:
    """`python -m components.<step>`: run the step by the command line's words and end the process."""
    prog = f"python -m components.{step}"
    conduct(command(step, prog), sys.argv[1:], prog=prog)


def command(step: str, prog: str) -> click.Command:
    """The command of a step: one option an argument of its `run`, in that order, then how its Params are given.

    Args:
        step: a module below `components`.
        prog: what people type to reach it, for the example.
    """
    # Before the step's module loads OpenMP: threads that spin while they wait slow small fits a hundred times.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    module = importlib.import_module(f"components.{step}")
    hints, told = get_type_hints(module.run), _described(module.run, "Args")
    options: list[click.Parameter] = []
    for parameter in inspect.signature(module.run).parameters.values():
        if parameter.name == "params":
            continue
        kind = hints[parameter.name]
        if isinstance(kind, UnionType):
            kind = next(part for part in get_args(kind) if part is not type(None))
        required = parameter.default is inspect.Parameter.empty
        options.append(
            click.Option(
                [f"--{parameter.name.replace('_', '-')}", parameter.name],
                # What a step reads is there; where it writes is made.
                type=click.Path(path_type=Path) if parameter.name == "out" else _TYPES[kind],
                show_default=not required and parameter.default not in (None, ""),
                help=told.get(parameter.name),
                # A default of None that is said counts as an answer, and click would not miss the option.
                **({"required": True} if required else {"default": parameter.default}),
            )
        )
    needed = " ".join(f"{option.opts[0]} {str(option.name).upper()}" for option in options if option.required)
    options += [
        click.Option(
            ["--params", "section"],
            metavar="FILE:SECTION",
            help="The step's own section, as params.yaml:families.tabular.train; or a JSON object.",
        ),
        click.Option(
            ["--set", "pairs"],
            multiple=True,
            metavar="KEY=VALUE",
            help="One parameter, its value in YAML; repeatable, wins over --params.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document."),
    ]
    summary = " ".join((inspect.getdoc(module.run) or "").split("\n\n")[0].split())
    return click.Command(
        step,
        params=options,
        callback=lambda **given: _call(module, step, prog, given),
        help=f"{summary}\n\n\b\nParameters:\n{_listing(module.Params)}\n\n\b\nExample:\n  {prog} {needed}",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


def read_params(section: str | None, pairs: Sequence[str]) -> dict[str, Any]:
    """A step's parameters from `--params` and `--set`, unchecked.

    Args:
        section: `FILE:SECTION`, where SECTION is keys joined by points and null stands for an empty section; or a JSON object.
        pairs: `KEY=VALUE` each.

    Raises:
        ConfigError: the words have another form, the file is no YAML, or it has no such section; names the key that is missing.
        SourceError: there is no such file.
    """
    found: Any = {}
    if section is not None:
        found = _json(section) if section.lstrip().startswith("{") else _section(section)
    values: dict[str, Any] = dict(found)
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"--set takes KEY=VALUE, but got {pair!r}", code="bad_set", where="--set", cure="for example --set trials=20"
            )  # fmt: skip
        values[key.strip()] = strict_yaml.parse(
            text, code="bad_set", where=f"--set {pair}"[:200], cure="quote the value, for the shell and for YAML"
        )
    return values


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"--params takes FILE:SECTION or a JSON object, but: {error}",
            code="bad_params", where="--params", cure="quote the whole object for the shell",
        ) from error  # fmt: skip


def _section(text: str) -> Mapping[str, Any]:
    file, colon, path = text.rpartition(":")
    if not (file and colon and path):
        raise ConfigError(
            f"--params takes FILE:SECTION or a JSON object, but got {text!r}",
            code="bad_params", where="--params", cure="for example --params params.yaml:families.tabular.train",
        )  # fmt: skip
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise SourceError(
            f"the file of --params must be readable, but {file}: {error.strerror}",
            code="missing_file", where="--params", cure="name a YAML file, seen from the working directory",
        ) from error  # fmt: skip
    found: Any = strict_yaml.parse(data, code="bad_params", where=f"--params {text}", cure=f"correct {file}")
    above = file
    for key in path.split("."):
        if not isinstance(found, Mapping) or key not in found:
            keys = ", ".join(map(str, found)) if isinstance(found, Mapping) else "no keys at all"
            raise ConfigError(
                f"a section of parameters must be there, but {above} has no {key!r}",
                code="no_section", where=f"--params {text}", cure=f"{above} has {keys}",
            )  # fmt: skip
        found, above = found[key], f"{above}:{key}" if above == file else f"{above}.{key}"
    if found is not None and not isinstance(found, Mapping):
        raise ConfigError(
            f"a section of parameters is keys and values, but {above} is {found!r}"[:300],
            code="no_section", where=f"--params {text}", cure="name the section, not a value in it",
        )  # fmt: skip
    return found or {}


def _call(module: Any, step: str, prog: str, given: dict[str, Any]) -> None:
    from pydantic import ValidationError

    as_json = given.pop("as_json")
    if "line" in given:
        Line.parse(given["line"])
    values = read_params(given.pop("section"), given.pop("pairs"))
    try:
        params = module.Params.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"{step}.{'.'.join(map(str, first['loc']))}: {first['msg']}, but got {str(first['input'])[:200]!r}",
            code="bad_params",
            where=f"step {step}",
            cure=f"parameters are {', '.join(module.Params.model_fields)}; see `{prog} --help`",
        ) from error
    report = module.run(**given, params=params)
    told = report.model_dump(mode="json")
    if as_json:
        emit(told)
    else:
        for key, value in told.items():
            say(f"{key:<20} {value}")


def _listing(params: Any) -> str:
    """A line a parameter: its name, its default, what it is."""
    told = _described(params, "Attributes")
    lines = []
    for key, field in params.model_fields.items():
        default = field.get_default(call_default_factory=True)
        says = field.description or told.get(key, "")
        lines.append(f"  {key} = {default!r}" + (f"  ({says.rstrip('.')})" if says else ""))
    return "\n".join(lines) or "  none"


def _described(documented: Any, heading: str) -> dict[str, str]:
    """Name -> text of a docstring's section `Args` or `Attributes`; several names may share a line."""
    part = re.search(rf"^{heading}:\n((?:    .*\n?|\n)+)", inspect.getdoc(documented) or "", re.MULTILINE)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in part[1].splitlines() if part else []:
        if entry := re.fullmatch(r"    (\w+(?:, \w+)*): (.*)", line):
            names = entry[1].split(", ")
            found.update(dict.fromkeys(names, entry[2]))
        else:
            found.update({name: f"{found[name]} {line.strip()}".strip() for name in names})
    return found
