"""Infers the label of a table from its cells: the task, the classes in their own type, or the range of its numbers."""

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from esteira.errors import DataError
from esteira.family import Finding
from esteira.features import parse
from esteira.features.contract import ClassLabel, Target, Task
from families.tabular.cells import MOSTLY, Cells, coded, few, parsed

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASS_VALUES = 20  # a whole-numbered label with more distinct values is a regression
MAX_CLASSES = 1000


def infer_target(cells: Cells, name: str, forced: Task | None) -> tuple[Target, list[Finding]]:
    where = f"column {name}"
    numbers, numeric, empty = parsed(cells, parse.number)
    boolean = bool(cells.values) and all(isinstance(value, bool) for value in cells.values)
    named, mask = cells.without(empty), numeric[~empty]
    mostly = not boolean and named.n > 0 and named.share(mask) >= MOSTLY and not coded(named, mask)
    if not mostly:
        empty = np.array([str(value).lower() == "nan" for value in cells.values], dtype=bool)
    real = cells.without(empty)
    notes: list[Finding] = []
    if real.n < len(cells.codes):
        count = len(cells.codes) - real.n
        notes.append(
            Finding("label_missing", name, None, f"{count} of {len(cells.codes)} rows have no label", "warning")
        )
    if real.n == 0:
        raise DataError(
            f"a label must have values, but every cell of {name!r} is empty",
            code="empty_target",
            where=where,
            cure="choose another label",
        )
    values = (
        [value for value, none in zip(numbers, empty, strict=True) if not none and value is not None] if mostly else []
    )
    whole = mostly and all(value.is_integer() for value in values)
    task: Task
    if forced:
        task = forced
    elif mostly and (not whole or len(set(values)) > CLASS_VALUES):
        task = "regression"
    else:
        task = "multiclass"
    if task == "regression":
        return _regression(name, values, mostly, where), notes
    classes, counts = _classes(real, whole, boolean, numeric[~empty])
    if len(classes) < 2:
        raise DataError(
            f"a label needs at least 2 classes, but {name!r} has only {parse.shown(classes[0])}",
            code="one_class",
            where=where,
            cure="choose another label, or rows of both classes",
        )
    if len(classes) > MAX_CLASSES or (len(classes) > CLASS_VALUES and len(classes) > 0.5 * real.n):
        raise DataError(
            f"a label of classes repeats itself, but {name!r} has {len(classes)} distinct values in {real.n} rows",
            code="too_many_classes",
            where=where,
            cure="choose another label; for numbers say `task: regression`",
        )
    if forced == "binary" and len(classes) != 2:
        raise DataError(
            f"a binary label has 2 classes, but {name!r} has {len(classes)}: {few(classes)}",
            code="not_binary",
            where=where,
            cure="leave `task` out, or use `task: multiclass`",
        )
    rare = [str(value) for value, count in zip(classes, counts, strict=True) if count < 5]
    if rare:
        notes.append(Finding("rare_class", name, None, f"fewer than 5 rows: class {few(rare)}", "warning"))
    final: Task = forced or ("binary" if len(classes) == 2 else "multiclass")
    return Target(name=name, task=final, classes=tuple(classes)), notes


def _regression(name: str, values: list[float], mostly: bool, where: str) -> Target:
    if not mostly:
        raise DataError(
            f"a label for regression is a number, but most cells of {name!r} are not",
            code="label_not_numeric",
            where=where,
            cure="choose another label, or leave `task` out",
        )
    if min(values) == max(values):
        raise DataError(
            f"a label must vary, but every value of {name!r} is {values[0]:g}",
            code="one_class",
            where=where,
            cure="choose another label",
        )
    return Target(name=name, task="regression", minimum=min(values), maximum=max(values))


def _classes(
    cells: Cells, whole: bool, boolean: bool, numeric: "NDArray[np.bool_]"
) -> tuple[list[ClassLabel], list[int]]:
    """Classes in sorted order, in their own type, and the rows of each."""
    counts: dict[ClassLabel, int] = {}
    words = {str(value).lower() for value in cells.values}
    truths = boolean or words == {"true", "false"}
    for value, count, good in zip(cells.values, cells.counts.tolist(), numeric.tolist(), strict=True):
        key: ClassLabel
        if truths:
            key = parse.boolean(value) == 1.0
        elif whole:
            if not good:
                continue  # a stray word in a column of whole numbers is a bad cell
            key = int(parse.number(value))
        else:
            key = str(value)
        counts[key] = counts.get(key, 0) + count
    ordered = sorted(counts, key=lambda key: cast(Any, key))
    return ordered, [counts[key] for key in ordered]
