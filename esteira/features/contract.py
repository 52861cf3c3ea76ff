"""The contract of a table: what every column of a line's rows must look like. A value object; it reads no data."""

from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

ColumnKind = Literal["number", "integer", "boolean", "category", "date", "text", "object"]
Task = Literal["binary", "multiclass", "regression"]
ClassLabel = bool | int | str


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Frozen):
    """One feature column.

    Attributes:
        kind: how a value decodes; an `object` is a nested JSON value, kept as JSON text in tables.
        minimum, maximum: range seen (numbers as such; dates as ISO text). A value outside is a warning, not an error.
        categories: values seen, most frequent first; None unless kind is category.
        missing_share: share of missing cells seen, in [0, 1].
        required: a row without this column is refused; an empty cell is only a warning.
        unit: unit of a number, free text for people.
    """

    name: str
    kind: ColumnKind
    minimum: float | str | None = None
    maximum: float | str | None = None
    categories: tuple[str, ...] | None = None
    missing_share: float = Field(default=0.0, ge=0, le=1)
    required: bool = True
    unit: str = ""


class Target(_Frozen):
    """The label column. `classes` keeps the labels' own type and sorted order; None for regression."""

    name: str
    task: Task
    classes: tuple[ClassLabel, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""


class ContractOptions(_Frozen):
    """What people know better than the cells when a line's contract is made.

    Attributes:
        kinds: column -> kind; such a column is never dropped as an identifier.
        task: forces the task.
        drop: columns to leave out.
        time_column: the split goes by it, later rows to the test part; it stays a feature.
        group_column: rows of one value stay on one side of the split; it is no feature.
        max_bad_share: share of rows in [0, 1] that may be quarantined; None leaves it to the contract.
    """

    kinds: Mapping[str, ColumnKind] = Field(default_factory=dict)
    task: Task | None = None
    drop: tuple[str, ...] = ()
    time_column: str | None = None
    group_column: str | None = None
    max_bad_share: float | None = Field(default=None, ge=0, le=1)


class Dropped(_Frozen):
    """A column of the source that is left out, and why."""

    name: str
    reason: str


class TableContract(_Frozen):
    """What rows of a line look like; inferred once, reviewed by people, enforced on all later data of the line.

    Attributes:
        columns: feature columns in the order of the source; the decoder keeps this order.
        dropped: columns that are left out (identifiers, all-null, constant), with the reason.
        max_bad_share: share of rows in [0, 1] that may be quarantined before validation fails.
        time_column, group_column: when set, the split is by time or group instead of stratified at random.
    """

    version: Literal[1] = 1
    line: str
    target: Target
    columns: tuple[Column, ...]
    dropped: tuple[Dropped, ...] = ()
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    time_column: str | None = None
    group_column: str | None = None

    def column(self, name: str) -> Column:
        """The feature column of that name; KeyError if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def to_yaml(self) -> str:
        """Reviewable YAML: columns in source order, defaults left out."""
        document: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        document = {"version": self.version, **document}
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)

    @classmethod
    def from_yaml(cls, text: str) -> "TableContract":
        """Read what `to_yaml` wrote (or a person edited).

        Raises:
            pydantic.ValidationError: an unknown key or a value out of range.
        """
        return cls.model_validate(yaml.safe_load(text))
