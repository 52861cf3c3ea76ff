"""One bundle answers blocks of rows: good ones become columns of answers, bad ones lines of errors. Writes nothing.

A bundle whose stages are the decoder, the graph and what its manifest says of the outputs is run a column at a time; any other
answers through its family, row by row, and its answers become the same columns.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esteira.batch.blocks import Block
from esteira.bundle import answerer, open_bundle
from esteira.errors import ConfigError, DataError
from esteira.family import Answer, Finding, Row
from esteira.sources.form import listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_COLUMNWISE = ["decode", "graph.onnx", "post"]
_TOLD = 10  # errors of one row that are written down
_SHOWN = 300  # signs of a message


@dataclass
class Part:
    """The answers of some rows that follow each other.

    Attributes:
        columns: name -> values, one a good row: `row`, those that were kept, the answer's own, `warnings` (how many).
        kept: which of them are columns of the source.
        kinds: the pyarrow type of those that have one.
        errors: JSON lines, one a broken rule: file, row (of the whole source, from 1), rule, column, message.
        rows: good and bad ones.
        bad: rows with an error.
        warnings: column -> rule -> rows.
    """

    columns: dict[str, list[Any]] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    kinds: dict[str, Any] = field(default_factory=dict)
    errors: list[bytes] = field(default_factory=list)
    rows: int = 0
    bad: int = 0
    warnings: Counter[tuple[str, str]] = field(default_factory=Counter)


class Answering:
    """An open bundle, for batches.

    Args:
        bundle: its folder.
        bundle_id: when given, the one identity that is wanted.
        device: `auto`, `cpu` or `cuda`.
        keep: columns of the source that travel with the answers; the contract need not know them.

    Raises:
        Refused, SourceError, ConfigError: the bundle cannot be opened; see `esteira.bundle.open_bundle`.
    """

    def __init__(self, bundle: Path, *, bundle_id: str = "", device: str = "auto", keep: Sequence[str] = ()) -> None:
        opened = open_bundle(bundle, device, bundle_id or None)
        self.bundle_id, self.line = opened.bundle_id, str(opened.manifest["line"])
        self.keep = tuple(keep)
        self._answerer = answerer(opened)
        self._post: Mapping[str, Any] | None = opened.manifest.get("post")
        self._decoder: Any = None
        self._run: Callable[[NDArray[np.float32]], NDArray[Any]]
        clash = {"row", "warnings", *self._said()}.intersection(keep)
        if clash:
            raise ConfigError(
                f"a column that is kept has another name than those of the answers, but {min(clash)!r} is one of these",
                code="kept_name", where="--keep", cure="rename the column, or join the answers to the source by `row`",
            )  # fmt: skip
        self._unknown = {name for name in keep if self._rules([name], "unknown")}
        if list(opened.manifest["stages"]) == _COLUMNWISE and self._post is not None:
            from esteira.features.decode import Decoder

            self._decoder = Decoder.from_json(opened.read("decoder.json"))
            self._run = lambda x: opened.run("graph.onnx", x)["y"]

    def _rules(self, names: Sequence[str], rule: str) -> list[str]:
        """The columns of which a row with these names, all empty, breaks the rule."""
        return [found.column for found in self._answerer.check([dict.fromkeys(names)]) if found.rule == rule]

    def columns_of(self, names: Sequence[str], where: str) -> list[str]:
        """Which columns of a table are wanted.

        Raises:
            DataError: the contract needs a column that is not there, or does not know one that is, or one that should be kept
                is not there.
        """
        absent = [name for name in self.keep if name not in names]
        missing = self._rules(names, "required") + absent
        if missing:
            raise DataError(
                f"a table has every column that the model needs and that is kept, but it lacks {listed(missing)}",
                code="missing_column", where=where, cure="add the column (its cells may be empty), or correct the name",
            )  # fmt: skip
        unknown = [name for name in self._rules(names, "unknown") if name not in self._unknown]
        if unknown:
            raise DataError(
                f"a table has columns that the contract of {self.line} knows, but it does not know {listed(unknown)}",
                code="unknown_column", where=where, cure="take the column out, or carry it along with --keep NAME",
            )  # fmt: skip
        if self._decoder is None:
            return list(names)
        needed = {*(column.name for column in self._decoder.columns), *self.keep}
        return [name for name in names if name in needed]

    def part(self, blocks: Iterable[tuple[str, Block]], first: int) -> Part:
        """Answer blocks that follow each other.

        Args:
            blocks: each with the name of its file.
            first: number of rows of the source before them.

        Raises:
            OutsideError and others: what the model's runtime raises.
        """
        part = Part(columns={name: [] for name in self._names()}, kept=self.keep)
        for file, block in blocks:
            if block.table is not None and self._decoder is not None:
                self._table(part, file, block.table, first + part.rows)
            else:
                rows = block.table.to_pylist() if block.table is not None else block.rows
                self._rows(part, file, rows, first + part.rows)
                for name in self.keep if block.table is not None else ():
                    part.kinds.setdefault(name, block.table.schema.field(name).type)
            part.rows += len(block)
        return part

    def _names(self) -> list[str]:
        return ["row", *self.keep, *self._said(), "warnings"]

    def _said(self) -> list[str]:
        from esteira.features.answers import class_key

        if self._post is None:
            return ["answer"]
        classes = self._post.get("classes")
        if classes is None:
            return ["prediction", "low", "high", "confidence"]
        return ["prediction", *(f"proba_{class_key(label)}" for label in classes), "confidence"]

    def _table(self, part: Part, file: str, table: Any, before: int) -> None:
        """The fast way: features and findings by columns, outputs by columns."""
        import numpy as np

        from esteira.batch.columns import Columns

        seen = Columns(self._decoder).read(table)
        good = np.ones(table.num_rows, dtype=bool)
        good[list(seen.errors)] = False
        for row in sorted(seen.errors):
            self._refuse(part, file, before + row, seen.errors[row])
        part.warnings += seen.count(good)
        at = np.flatnonzero(good)
        for name in self.keep:
            column = table.column(name)
            part.kinds.setdefault(name, column.type)
            kept = column.to_pylist()
            part.columns[name] += kept if len(at) == len(kept) else [kept[row] for row in at.tolist()]
        part.columns["row"] += (at + before + 1).tolist()
        part.columns["warnings"] += seen.warned[good].tolist()
        self._outputs(part, seen.x if len(at) == len(good) else seen.x[good])

    def _rows(self, part: Part, file: str, rows: "Sequence[Row | Finding]", before: int) -> None:
        """The way of rows as the service has them."""
        at = [number for number, row in enumerate(rows) if not isinstance(row, Finding)]
        readable: list[Row] = [self._without_kept(row) for row in rows if not isinstance(row, Finding)]
        errors: dict[int, list[Finding]] = {n: [row] for n, row in enumerate(rows) if isinstance(row, Finding)}
        warned: Counter[int] = Counter()
        findings = self._answerer.check(readable)
        for finding in findings:
            if finding.row is not None and finding.severity == "error":
                errors.setdefault(at[finding.row], []).append(finding)
        for finding in findings:
            if finding.row is not None and finding.severity == "warning" and at[finding.row] not in errors:
                warned[at[finding.row]] += 1
                part.warnings[finding.column, finding.rule] += 1
        for number in sorted(errors):
            self._refuse(part, file, before + number, errors[number])
        good = [(number, row) for number, row in zip(at, readable, strict=True) if number not in errors]
        for number, _ in good:
            row = rows[number]
            assert not isinstance(row, Finding)
            part.columns["row"].append(before + number + 1)
            part.columns["warnings"].append(warned[number])
            for name in self.keep:
                part.columns[name].append(row.get(name))
        if self._decoder is not None:
            self._outputs(part, self._decoder.rows([row for _, row in good]))
        elif good:
            self._answers(part, self._answerer.answer([row for _, row in good]))

    def _without_kept(self, row: Row) -> Row:
        if not self._unknown:
            return row
        return {name: cell for name, cell in row.items() if name not in self._unknown}

    def _refuse(self, part: Part, file: str, before: int, findings: Sequence[Finding]) -> None:
        part.bad += 1
        for finding in findings[:_TOLD]:
            told = {
                "file": file,
                "row": before + 1,
                "rule": finding.rule,
                "column": finding.column[:_SHOWN],
                "message": finding.message[:_SHOWN],
            }
            part.errors.append(json.dumps(told, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def _outputs(self, part: Part, x: "NDArray[np.float32]") -> None:
        """What the graph gives for features, by columns; as `FeatureAnswerer.answer` says it of rows."""
        import numpy as np

        from esteira.features.answers import said

        if not len(x):
            return
        assert self._post is not None
        y = self._run(x)
        columns = part.columns
        classes = self._post.get("classes")
        if classes is not None:
            codes = said(y, self._post)
            columns["prediction"] += [classes[code] for code in codes.tolist()]
            for number, name in enumerate(self._said()[1:-1]):
                columns[name] += y[:, number].tolist()
            columns["confidence"] += y[np.arange(len(y)), codes].tolist()
            return
        values = y.reshape(len(x)).astype(np.float64)
        half = _halves(values, self._post)
        columns["prediction"] += values.tolist()
        columns["low"] += [None] * len(x) if half is None else (values - half).tolist()
        columns["high"] += [None] * len(x) if half is None else (values + half).tolist()
        columns["confidence"] += [None if half is None else _level(self._post)] * len(x)

    def _answers(self, part: Part, answers: Sequence[Answer]) -> None:
        for answer in answers:
            if self._post is None:
                part.columns["answer"].append(json.dumps(answer, ensure_ascii=False, allow_nan=False))
                continue
            part.columns["prediction"].append(answer["prediction"])
            part.columns["confidence"].append(answer.get("confidence"))
            if self._post.get("classes") is not None:
                for key, probability in answer["probabilities"].items():
                    part.columns[f"proba_{key}"].append(probability)
            else:
                low, high = answer.get("interval") or (None, None)
                part.columns["low"].append(low)
                part.columns["high"].append(high)

    @property
    def prediction(self) -> type:
        """The type of `prediction`: bool, int, str or float; of another family's answers str, their JSON text."""
        if self._post is None:
            return str
        classes = self._post.get("classes")
        return float if classes is None else type(classes[0])


def _level(post: Mapping[str, Any]) -> float:
    from esteira.features.answers import INTERVAL_LEVEL

    return float(post.get("interval_level", INTERVAL_LEVEL))


def _halves(values: "NDArray[np.float64]", post: Mapping[str, Any]) -> "NDArray[np.float64] | None":
    """Half the width of each interval; None where nothing is known of it."""
    import numpy as np

    bands: Sequence[Mapping[str, Any]] = post.get("interval_bands") or ()
    if bands:
        ends = np.array([band["upto"] for band in bands[:-1]], dtype=np.float64)
        widths = np.array([band["quantile"] for band in bands], dtype=np.float64)
        chosen: NDArray[np.float64] = widths[np.searchsorted(ends, values, side="left")]
        return chosen
    overall = post.get("interval_quantile")
    return None if overall is None else np.full(len(values), float(overall))
