"""The Great Expectations suite made from a contract, run over a table; a second witness beside `esteira.checks`.

Great Expectations takes seconds to import, so it is imported where it runs and nowhere else. It sends nothing anywhere.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esteira.checks import EXAMPLES, Fault, Typed, plain

if TYPE_CHECKING:
    import pandas as pd

    from esteira.features.contract import Column, TableContract

# Faults of ours that Great Expectations sees as a text in the column of what could not be read.
_UNREAD = frozenset({"type", "infinite", "label_class"})


def run(frame: "pd.DataFrame", made: Typed, contract: "TableContract") -> list[dict[str, Any]]:
    """Run the suite over all rows, bad ones too.

    Each column is looked at as typed; beside it stands a column of the texts that could not be read, which must be empty.

    Args:
        frame: the raw rows.
        made: what `checks.typed` made of them.
        contract: what the suite is made from.

    Returns:
        One dict an expectation, unmet ones first: `expectation`, `column`, `rule`, `severity`, `success`, `arguments`, and
        for rules on cells `element_count`, `unexpected_count`, `examples` (row from 1 and value, five at most).

    Raises:
        RuntimeError: it counts otherwise than `esteira.checks` does, which is a fault of ours or of the library.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports: sre_constants, pyparsing
        import great_expectations as gx

        looked_at, expectations = _suite(frame, made, contract)
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        batch = (
            context.data_sources.add_pandas("rows")
            .add_dataframe_asset("rows")
            .add_batch_definition_whole_dataframe("all")
        )
        suite = context.suites.add(gx.ExpectationSuite(name="contract", expectations=expectations))
        definition = gx.ValidationDefinition(data=batch, suite=suite, name="contract")
        outcome = context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": looked_at},
            result_format={"result_format": "SUMMARY", "partial_unexpected_count": EXAMPLES},
        )
    results = [_result(result) for result in outcome.results]
    require_agreement(results, made.faults)
    return sorted(results, key=lambda result: result["success"])


def require_agreement(results: Sequence[Mapping[str, Any]], faults: Sequence[Fault]) -> None:
    """Refuse two truths: every rule on cells must be broken by as many cells here as in `esteira.checks`.

    Raises:
        RuntimeError: a count differs.
    """
    for result in results:
        if "unexpected_count" not in result:
            continue
        column, rule = result["column"], result["rule"]
        rules = _UNREAD if rule == "unread" else {rule}
        ours = sum(len(fault.positions) for fault in faults if fault.column == column and fault.rule in rules)
        if ours != result["unexpected_count"]:
            raise RuntimeError(
                f"the contract's rule {rule!r} of column {column!r} is broken by {ours} cells for esteira.checks, but by"
                f" {result['unexpected_count']} for Great Expectations: one of them reads the contract wrongly"
            )


def _suite(frame: "pd.DataFrame", made: Typed, contract: "TableContract") -> tuple["pd.DataFrame", list[Any]]:
    """The frame to look at, indexed by row number from 1, and the expectations on it.

    Columns are called by their position, as Great Expectations takes `Kurt.maxis` and `Kurt.Maxis` for the same column.
    """
    import great_expectations.expectations as gxe
    import numpy as np
    import pandas as pd

    target = contract.target.name
    meta = {"column": target}
    unread = np.zeros(len(frame), dtype=bool)
    for fault in made.faults:
        if fault.column == target and fault.rule in _UNREAD:
            unread[fault.positions] = True
    texts = _texts(frame[target])
    # A label that cannot be read is not an empty one, so it keeps its text here.
    columns: dict[str, Any] = {
        "label": texts.where(unread, _texts(made.frame[target])),
        "label unread": texts.where(unread, None),
    }
    expectations: list[Any] = [
        gxe.ExpectTableRowCountToBeBetween(min_value=1, meta={"rule": "rows"}),
        gxe.ExpectColumnUniqueValueCountToBeBetween(column="label", min_value=2, meta={**meta, "rule": "one_class"}),
        gxe.ExpectColumnValuesToNotBeNull(column="label", meta={**meta, "rule": "label_missing"}),
        gxe.ExpectColumnValuesToBeNull(column="label unread", meta={**meta, "rule": "unread"}),
    ]
    for number, column in enumerate(contract.columns, 1):
        if column.name not in frame.columns:
            continue
        name, beside, meta = f"column {number}", f"column {number} unread", {"column": column.name}
        columns[name] = made.frame[column.name]
        columns[beside] = _texts(frame[column.name]).where(made.unread[column.name], None)
        expectations += [
            gxe.ExpectColumnToExist(column=name, meta={**meta, "rule": "required"}),
            gxe.ExpectColumnValuesToBeNull(column=beside, meta={**meta, "rule": "unread"}),
        ]
        low, high = _bounds(column)
        if low is not None or high is not None:
            range_meta = {**meta, "rule": "range"}
            expectations.append(
                gxe.ExpectColumnValuesToBeBetween(
                    column=name, min_value=low, max_value=high, severity="warning", meta=range_meta
                )
            )
        if column.kind == "category" and column.categories is not None:
            category_meta = {**meta, "rule": "category"}
            expectations.append(
                gxe.ExpectColumnValuesToBeInSet(
                    column=name, value_set=list(column.categories), severity="warning", meta=category_meta
                )
            )
    return pd.DataFrame(columns).set_index(pd.RangeIndex(1, len(frame) + 1)), expectations


def _texts(series: "pd.Series[Any]") -> "pd.Series[Any]":
    return series.astype(object).map(str, na_action="ignore")


def _bounds(column: "Column") -> tuple[Any, Any]:
    import pandas as pd

    if column.kind in {"number", "integer"}:
        return column.minimum, column.maximum
    if column.kind == "date" and column.minimum is not None and column.maximum is not None:
        low, high = (pd.to_datetime(str(end), utc=True).to_pydatetime() for end in (column.minimum, column.maximum))
        return low, high
    return None, None


def _result(result: Any) -> dict[str, Any]:
    """What Great Expectations found, without its wall times and ids."""
    config = result.expectation_config
    meta: Mapping[str, Any] = config.meta
    if (result.exception_info or {}).get("raised_exception"):
        raise RuntimeError(f"Great Expectations could not evaluate {config.type} on {meta}: {result.exception_info}")
    severity = str(getattr(config.severity, "value", config.severity))
    document = {
        "expectation": config.type,
        "column": meta.get("column", ""),
        "rule": meta["rule"],
        "severity": "warning" if severity == "warning" else "error",
        "success": bool(result.success),
        "arguments": {key: _plain(value) for key, value in config.kwargs.items() if key not in {"batch_id", "column"}},
    }
    found = result.result
    if "unexpected_count" in found:
        rows = found.get("partial_unexpected_index_list") or []
        values = found.get("partial_unexpected_list") or []
        document |= {
            "element_count": int(found["element_count"]),
            "unexpected_count": int(found["unexpected_count"]),
            "examples": [{"row": int(row), "value": plain(value)} for row, value in zip(rows, values, strict=False)],
        }
    return document


def _plain(value: Any) -> Any:
    return [plain(item) for item in value] if isinstance(value, list) else plain(value)
