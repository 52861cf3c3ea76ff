"""Holds every row against the line's contract: good rows go on typed, bad ones into quarantine with a reason each.

The family infers the contract from the first data of a line, or declares it; what a line has accepted is enforced on all
later data. Which cells break it is decided once, by `esteira.checks`, and a family may add rules on whole rows; the Great
Expectations suite made from the same contract must count the same, or the step stops.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components import champions
from esteira import admission, checks, expectations, outputs
from esteira.admission import Admission
from esteira.checks import CrossRule, Fault, Quality
from esteira.checks_page import page
from esteira.errors import ConfigError, DataError, Refused, SourceError
from esteira.family import Finding, Line, Trainable, load_trainable
from esteira.features.contract import ColumnKind, ContractOptions, TableContract, Task
from esteira.sources import ROW_NUMBER

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

_ON_PAGE = 50


class Params(BaseModel):
    """The section `validate` of params.yaml.

    Attributes:
        allow_leak: columns that may be near-copies of the label.
        max_bad_share: share of rows in [0, 1] that may be quarantined; without it the contract's own.
        min_rows: the fewest good rows that can be learned from.
        rules: rules between two columns of a row, e.g. `start <= end`; a row that breaks one is quarantined.
        expectations: also run the Great Expectations suite (seconds of imports).
        kinds: column -> kind, where a person knows better than the cells.
        task: forces the task.
        drop: columns to leave out.
        time_column, group_column: the split goes by them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_leak: tuple[str, ...] = ()
    max_bad_share: float | None = Field(default=None, ge=0, le=1)
    min_rows: int = Field(default=10, ge=2)
    rules: tuple[str, ...] = ()
    expectations: bool = True
    kinds: dict[str, ColumnKind] = Field(default_factory=dict)
    task: Task | None = None
    drop: tuple[str, ...] = ()
    time_column: str | None = None
    group_column: str | None = None

    @property
    def options(self) -> ContractOptions:
        """What the family is told when it makes the contract."""
        return ContractOptions.model_validate(self.model_dump(include=set(ContractOptions.model_fields)))


class Report(BaseModel):
    """What was found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_count: int
    good_rows: int
    quarantined_rows: int
    quality_score: float
    errors: int
    warnings: int
    task: str
    feature_columns: int
    dropped_columns: int


@dataclass(frozen=True)
class _Checked:
    """Everything that is known of the table before anything is written."""

    contract: TableContract
    admitted: Admission
    quality: Quality
    profile: list[dict[str, Any]]
    findings: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]
    expectations: list[dict[str, Any]]


def run(*, rows: Path, dataset: Path, target: str, line: str, champion: str = "", out: Path, params: Params) -> Report:
    """Validate rows into `out`: rows.parquet, contract.yaml, quarantine.jsonl, profile.json, findings.json, expectations.json,
    report.html.

    When the rows are refused after they were looked at, everything but rows.parquet and contract.yaml is written first, so
    that a person can see why.

    Args:
        rows: `rows.parquet` of ingest.
        dataset: `dataset.json` of ingest.
        target: name of the label column.
        line: the line whose data this is.
        champion: the present champion, whose contract is enforced: a folder, `file://` or `s3://` address of its bundle, a
            contract file, or `@champion` for the registry's. Empty, or a line without one, lets the family make a contract.
        out: folder of the outputs; created.
        params: limits and what people know of the columns.

    Raises:
        DataError: no or one-valued label, a missing or changed column, infinite numbers, too many bad rows, too few good ones,
            a near-copy of the label.
        ConfigError: the family cannot run, a parameter names a column that is not there, or the contract is of another line
            or label.
        Refused: rows.parquet is not what ingest wrote, or the champion is not what was sealed.
        SourceError: an input is missing.
        OutsideError: the disk is full.
    """
    family = load_trainable(Line.parse(line).family)
    accepted = champions.folder(champion, line)
    described, frame, nested = _read(rows, dataset)
    where = f"{line}, step validate, {described['source']}"
    checks.require_target(list(frame.columns), target, where)
    checks.require_classes(frame[target], target, f"{where}, column {target!r}")
    rules = [CrossRule.parse(text) for text in params.rules]
    if accepted is None:
        contract, found = admission.infer(family, frame, target, line, params.options, where)
        notes = _notes(found, len(frame))
    else:
        contract, notes = _accepted(accepted, target, line), []
    admission.require_flat(nested, contract, where)
    notes += _unknown(checks.require_columns(list(frame.columns), contract), len(frame))
    limit = contract.max_bad_share if params.max_bad_share is None else params.max_bad_share
    checked = _check(family, frame, contract, notes, rules, params)
    refusal = _refusal(checked, limit, params, where, accepted=accepted is not None)
    files = _files(checked, described, line, limit, refusal)
    if refusal is not None:
        outputs.write(out, files)
        raise refusal
    good = _table(checked.admitted.typed.frame, ~checked.admitted.bad, contract)
    outputs.write(out, {**files, "rows.parquet": good, "contract.yaml": contract.to_yaml().encode()})
    bad = int(checked.admitted.bad.sum())
    severities = [finding["severity"] for finding in checked.findings]
    return Report(
        row_count=len(frame),
        good_rows=len(frame) - bad,
        quarantined_rows=bad,
        quality_score=checked.quality.to_dict()["quality_score"],
        errors=severities.count("error"),
        warnings=severities.count("warning"),
        task=contract.target.task,
        feature_columns=len(contract.columns),
        dropped_columns=len(contract.dropped),
    )


def _read(rows: Path, dataset: Path) -> tuple[dict[str, Any], "pd.DataFrame", list[str]]:
    """dataset.json, the rows, and the columns whose cells are JSON text of nested values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = rows.read_bytes()
        described: dict[str, Any] = json.loads(dataset.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(
            f"the outputs of ingest must be readable, but: {error}",
            code="missing_file",
            where="step validate",
            cure="run the step ingest again",
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != described["rows_hash"]:
        raise Refused(
            f"rows.parquet must have SHA-256 {described['rows_hash']} as dataset.json says, but has {found}: it was changed",
            code="content_hash",
            where=f"step validate, {described['source']}",
            cure="run the step ingest again",
        )
    table = pq.read_table(pa.BufferReader(data))
    nested = [field.name for field in table.schema if pa.types.is_large_string(field.type)]
    return described, table.to_pandas(), nested


# ---------------------------------------------------------------- the contract


def _notes(notes: Sequence[Finding], rows: int) -> list[dict[str, Any]]:
    """Notes of the inference as findings; those that `checks` counts cell by cell are left to it."""
    counted = {"type", "missing", "rare", "label_missing"}
    return [
        {
            "rule": note.rule, "column": note.column, "severity": note.severity, "count": rows, "share": 1.0,
            "message": note.message, "examples": [],
        }
        for note in notes
        if note.rule not in counted
    ]  # fmt: skip


def _accepted(champion: Path, target: str, line: str) -> TableContract:
    """The line's accepted contract.

    Raises:
        ConfigError: it is of another line or label.
        Refused: there is no readable contract.
    """
    contract = _contract_of(champion)
    for what, found, expected in (("line", line, contract.line), ("label", target, contract.target.name)):
        if found != expected:
            raise ConfigError(
                f"the {what} must be the contract's, {expected!r}, but got {found!r}",
                code="other_contract",
                where=f"contract of {contract.line}",
                cure="name the same line and label, or open a new line with --as NAME",
            )
    return contract


def _unknown(extra: Sequence[str], rows: int) -> list[dict[str, Any]]:
    """Columns that the contract does not know, as findings."""
    return [
        {
            "rule": "unknown", "column": name, "severity": "warning", "count": rows, "share": 1.0, "examples": [],
            "message": f"column {name!r} is not in the line's contract and is not used; open a new line to learn from it",
        }
        for name in extra
    ]  # fmt: skip


def _contract_of(champion: Path) -> TableContract:
    try:
        if champion.is_file():
            return TableContract.from_yaml(champion.read_text("utf-8"))
        schema = json.loads((champion / "manifest.json").read_bytes())["schema"]
        return TableContract.model_validate(schema)
    except (OSError, ValueError, KeyError, ValidationError) as error:
        raise Refused(
            f"the line's accepted contract must be readable, but: {str(error).splitlines()[0]}",
            code="bad_contract",
            where=f"step validate, {champion.name}",
            cure="verify the champion's bundle, or roll the line back to a version that is whole",
        ) from error


# ---------------------------------------------------------------- checking


def _check(
    family: Trainable,
    frame: "pd.DataFrame",
    contract: TableContract,
    notes: list[dict[str, Any]],
    rules: Sequence[CrossRule],
    params: Params,
) -> _Checked:
    made = checks.typed(frame, contract, rules=rules)
    # The suite is made from the contract, so it is not asked about a family's own rules.
    witnessed = expectations.run(frame, made, contract) if params.expectations else []
    admitted = admission.admit(family, made, contract)
    made = admitted.typed
    found = [*checks.findings(made.faults), *checks.table_findings(frame, made.frame, contract), *notes]
    return _Checked(
        contract=contract,
        admitted=admitted,
        quality=checks.quality(frame, made, rules),
        profile=checks.profile(frame, made, contract),
        findings=sorted(found, key=lambda finding: finding["severity"]),
        quarantine=_quarantine(frame, made.faults),
        expectations=witnessed,
    )


def _refusal(checked: _Checked, limit: float, params: Params, where: str, *, accepted: bool) -> DataError | None:
    """Why these rows cannot be learned from; None when they can."""
    contract = checked.contract
    refused = admission.refusal(
        checked.admitted, contract, limit=limit, min_rows=params.min_rows, where=where, accepted=accepted
    )
    if refused is not None:
        return refused
    leaks = admission.leaks(checked.admitted.good, contract, params.allow_leak)
    if not leaks:
        return None
    columns = [finding.column for finding in leaks]
    return DataError(
        f"no column may be a near-copy of the label, but {leaks[0].message}"
        + (f"; so are {', '.join(map(repr, columns[1:6]))}" if columns[1:] else ""),
        code="leak",
        where=f"{where}, column {columns[0]!r}",
        cure=f"take the column out of the source; if it is known when the model answers: {' '.join(f'--allow-leak {c}' for c in columns)}",
    )


def _quarantine(frame: "pd.DataFrame", faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """Bad rows with all their reasons and raw values, in order; rows count from 1."""
    reasons: dict[int, list[dict[str, Any]]] = {}
    for fault in faults:
        if fault.severity != "error":
            continue
        for at, value, message in zip(fault.positions.tolist(), fault.values, fault.messages, strict=True):
            reason = {"rule": fault.rule, "column": fault.column, "value": value, "message": message}
            reasons.setdefault(at, []).append(reason)
    rows = sorted(reasons)
    cells = [map(checks.plain, frame[name].iloc[rows].tolist()) for name in frame.columns]
    return [
        {"row": at + 1, "reasons": reasons[at], "values": dict(zip(frame.columns, values, strict=True))}
        for at, values in zip(rows, zip(*cells, strict=True), strict=True)
    ]


# ---------------------------------------------------------------- files


def _files(
    checked: _Checked, described: Mapping[str, Any], line: str, limit: float, refusal: DataError | None
) -> dict[str, bytes]:
    quality = checked.quality.to_dict()
    bad = int(checked.admitted.bad.sum())
    summary = {
        "rows": len(checked.admitted.bad),
        "quarantined": bad,
        "limit": limit,
        "verdict": "refused" if refusal else "accepted",
        "error": refusal.to_dict() if refusal else None,
    }
    html = page(
        line=line,
        dataset=described,
        quality=quality,
        weights=checks.WEIGHTS,
        columns=checked.profile,
        dropped={column.name: column.reason for column in checked.contract.dropped},
        findings=checked.findings,
        quarantined=checked.quarantine[:_ON_PAGE],
        bad=bad,
        limit=limit,
        expectations=checked.expectations,
        verdict=f"{refusal.message}. {refusal.cure}" if refusal else "",
    )
    lines = "".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n" for entry in checked.quarantine)
    return {
        "quarantine.jsonl": lines.encode(),
        "profile.json": _json({**quality, "rows": len(checked.admitted.bad), "columns": checked.profile}),
        "findings.json": _json({**summary, "findings": checked.findings}),
        "expectations.json": _json({"ran": bool(checked.expectations), "results": checked.expectations}),
        "report.html": html.encode(),
    }


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _table(frame: "pd.DataFrame", good: "NDArray[np.bool_]", contract: TableContract) -> bytes:
    """Parquet of the good rows in the contract's types, with the source's row number from 1 as `__row__`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {column.name: column.kind for column in contract.columns}
    arrow: dict[str, pa.DataType] = {
        "number": pa.float64(), "integer": pa.float64(), "boolean": pa.bool_(), "category": pa.string(), "text": pa.string(),
        "date": pa.timestamp("us", tz="UTC"), "object": pa.string(),
    }  # fmt: skip
    arrays, names = [], []
    for name in frame.columns:
        if name in kinds:
            kind = arrow[kinds[name]]
        elif name == contract.target.name:
            kind = _label_type(contract)
        else:
            kind = arrow["date" if name == contract.time_column else "text"]
        arrays.append(pa.array(frame[name][good], type=kind, from_pandas=True))
        names.append(name)
    arrays.append(pa.array(np.flatnonzero(good) + 1, type=pa.int64()))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays, names=[*names, ROW_NUMBER]), sink, compression="zstd")
    return bytes(sink.getvalue())


def _label_type(contract: TableContract) -> Any:
    import pyarrow as pa

    if contract.target.classes is None:
        return pa.float64()
    first = contract.target.classes[0]
    return pa.bool_() if isinstance(first, bool) else pa.int64() if isinstance(first, int) else pa.string()


if __name__ == "__main__":
    from components.door import main

    main("validate")
