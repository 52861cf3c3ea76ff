"""What one run is asked to do: line, source, label, seed and each step's section, from params.yaml and the command line."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from esteira import strict_yaml
from esteira.errors import ConfigError
from esteira.family import Line, load_trainable
from esteira.project import FamilyParams, Project
from pipelines.shape import NAMES


class Plan(BaseModel):
    """A run, decided: every value that a step will be given. JSON-able, so that a record of it can be run again.

    `data_hash` names the bytes of the source; a run fills it in, so that a repeat of its record can refuse other bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: str
    source: str
    target: str
    seed: int
    sections: dict[str, dict[str, Any]]
    data_hash: str = ""


def parse_settings(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`train.trials=20` -> {"train": {"trials": 20}}; values are YAML.

    Raises:
        ConfigError: no `STEP.KEY=VALUE`, or no such step.
    """
    sections: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        step, dot, name = key.strip().partition(".")
        if not (equals and dot and name) or step not in NAMES:
            raise ConfigError(
                f"--set takes STEP.KEY=VALUE with a step of {', '.join(NAMES)}, but got {pair!r}",
                code="bad_set",
                where="--set",
                cure="for example --set train.trials=20",
            )
        value = strict_yaml.parse(text, code="bad_set", where=f"--set {key}", cure="quote the value")
        sections.setdefault(step, {})[name] = value
    return sections


def decide(
    line_text: str,
    *,
    project: Project,
    source: str | None = None,
    target: str | None = None,
    name: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    last: Mapping[str, str] | None = None,
) -> Plan:
    """Decide a run from the command's words, params.yaml and the line's last run.

    Args:
        line_text: `FAMILY` or `FAMILY@NAME`.
        name: `--as NAME`: the line's name.
        settings: what `parse_settings` gave.
        last: `source` and `target` of the line's last run, used when neither the command nor params.yaml says.

    Raises:
        ConfigError: no source or no label is known.
    """
    line = Line.parse(line_text)
    if name is not None:
        line = Line.parse(f"{line.family}@{name}")
    elif source is not None and target is not None and not line.name:
        line = Line.opened_by(line.family, source, target)
    own = project.lines.get(str(line))
    block = project.block(line.family, str(line))
    # A named line has rows of its own, so its family's are not its default.
    inherited = own or (FamilyParams() if line.name else block)
    last = last or {}
    source = source or inherited.source or last.get("source", "")
    target = target or inherited.target or last.get("target", "")
    for value, option, what in ((source, "--source", "the rows come from"), (target, "--target", "the label is in")):
        if not value:
            raise ConfigError(
                f"a run needs to know where {what}, but {line} has no {option[2:]} yet",
                code="no_" + option[2:],
                where=option,
                cure=f"esteira run {line} --source FILE --target COLUMN, or a block in params.yaml",
            )
    sections: dict[str, dict[str, Any]] = {}
    for step in NAMES:
        section = getattr(block, f"{step}_" if step in {"validate", "register"} else step)
        sections[step] = {**section, **(settings or {}).get(step, {})}
    check(line, sections)
    return Plan(
        line=str(line), source=source, target=target, seed=block.seed if seed is None else seed, sections=sections
    )


def check(line: Line, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what no step would take, before any step runs. A section that says nothing costs nothing.

    Raises:
        ConfigError: no such family, one that cannot be trained here, or a parameter that a step does not know or whose value it refuses.
    """
    load_trainable(line.family)
    for step, section in sections.items():
        if not section:
            continue
        try:
            importlib.import_module(f"components.{step}").Params.model_validate(section)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ConfigError(
                f"{step}.{'.'.join(map(str, first['loc']))}: {first['msg']}, but got {str(first['input'])[:200]!r}",
                code="bad_params",
                where=f"step {step}",
                cure=f"correct params.yaml or --set; `esteira step {step} --help` lists the parameters",
            ) from error
