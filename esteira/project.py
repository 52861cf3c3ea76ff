"""params.yaml, read in one way for whoever asks: a run, and what people do with a line later. Decides nothing of what it says.

A block is a family's or a single line's; a step's section in it is checked by the step's own model, where it is used.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esteira import strict_yaml
from esteira.errors import ConfigError

PARAMS = Path("params.yaml")
"""Seen from the working folder."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FamilyParams(_Frozen):
    """One block of params.yaml. `source` and `target` are what a run uses when the command names none."""

    source: str = ""
    target: str = ""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    ingest: dict[str, Any] = Field(default_factory=dict)
    validate_: dict[str, Any] = Field(default_factory=dict, alias="validate")
    featurize: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    evaluate: dict[str, Any] = Field(default_factory=dict)
    register_: dict[str, Any] = Field(default_factory=dict, alias="register")
    deploy: dict[str, Any] = Field(default_factory=dict)


class Project(_Frozen):
    """The whole of params.yaml; `lines` holds blocks of single lines that differ from their family's."""

    families: dict[str, FamilyParams] = Field(default_factory=dict)
    lines: dict[str, FamilyParams] = Field(default_factory=dict)

    def block(self, family: str, line: str) -> FamilyParams:
        """A family's block with what the line's own block says put over it, key by key."""
        ours, own = self.families.get(family) or FamilyParams(), self.lines.get(line)
        said = {} if own is None else {name: getattr(own, name) for name in own.model_fields_set}
        return ours.model_copy(
            update={
                name: {**getattr(ours, name), **value} if isinstance(value, dict) else value
                for name, value in said.items()
            }
        )


def read_project(path: Path = PARAMS) -> Project:
    """Read params.yaml; an absent file is an empty project.

    Raises:
        ConfigError: it is no YAML, or has a key that means nothing.
    """
    if not path.exists():
        return Project()
    document = strict_yaml.parse(path.read_bytes(), code="bad_params", where=str(path), cure="correct it")
    try:
        return Project.model_validate(document or {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}, but got {str(first['input'])[:200]!r}",
            code="bad_params",
            where=str(path),
            cure="the file has the blocks families and lines, and a block has the keys "
            + ", ".join(field.alias or name for name, field in FamilyParams.model_fields.items()),
        ) from error
