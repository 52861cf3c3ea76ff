"""Answers many rows with a line's champion, in parts with checkpoints: a try that follows a killed one goes on where it ended.

Stands beside the DAG as a pipeline of one step; it trains nothing and moves nothing.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from components import champions
from esteira import outputs
from esteira.batch import WINDOW_ROWS, Job, begun
from esteira.batch import run as answer
from esteira.errors import Refused
from esteira.settings import load_settings

REPORT = "batch.json"


class Params(BaseModel):
    """How rows are answered in bulk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows_per_part: int | None = Field(
        default=None, ge=1, le=WINDOW_ROWS, description="rows of a part and checkpoint; default 60,000"
    )
    form: Literal["parquet", "csv", "jsonl"] = Field(default="parquet", description="of the parts")
    keep: tuple[str, ...] = Field(default=(), description="columns of the rows that travel with the answers")
    delimiter: str = Field(default="", max_length=1, description="of CSV; default a comma, and a tab for .tsv")
    max_bad_share: float = Field(default=0.05, ge=0, le=1, description="share of bad rows above which the step fails")
    rate: float | None = Field(default=None, ge=1, description="rows a second at most")
    workers: int = Field(default=1, ge=1, le=256, description="processes that answer")


class Report(BaseModel):
    """What was answered.

    Attributes:
        processed: good rows, which have an answer.
        error: bad rows, told in `errors.jsonl` beside the parts.
        windows: of 60,000 rows each.
        answers: where the parts are; empty where they are the step's own output.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: str
    bundle_id: str
    content_hash: str
    rows: int
    processed: int
    error: int
    parts: int
    windows: int
    answers: str


def run(
    *, source: str, line: str, champion: str = "@champion", destination: str = "", out: Path, params: Params | None = None
) -> Report:  # fmt: skip
    """Answer every row of a source.

    Args:
        source: a file, a folder or `s3://`: CSV, JSON lines or Parquet.
        line: `FAMILY` or `FAMILY@NAME`.
        champion: what answers: `@champion` or another alias of the registry, a folder, or the address of a stored bundle. A try
            that goes on keeps the version that the batch began with, though the alias may have moved.
        destination: `s3://bucket/prefix` or a folder that outlives the step, so that its next try goes on; empty for `out`.
        out: folder of the step; gets batch.json, and `answers/` where there is no destination.
        params: the step's section of params.yaml.

    Raises:
        DataError: too many bad rows, or the source breaks a rule of form.
        Refused: the line has no such model, or the destination holds another batch.
        SourceError, ConfigError, OutsideError: as `esteira.batch.run`.
    """
    params = params or Params()
    place = destination or str(out / "answers")
    before = begun(place)
    bundle = champions.folder(champion, line, begun=before.bundle_id if before and before.line == line else "")
    if bundle is None:
        raise Refused(
            f"only a released line answers, but {line} has no {champion or 'champion'}",
            code="no_champion", where="step batch", cure=f"`esteira run {line}` trains and releases one",
        )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    summary = answer(
        Job(
            bundle=bundle, data=source, out=place, device=load_settings().device, **params.model_dump(),
        )
    )  # fmt: skip
    report = Report(
        line=line, bundle_id=summary.bundle_id, content_hash=summary.content_hash,
        rows=summary.processed + summary.error, processed=summary.processed, error=summary.error, parts=summary.parts,
        windows=summary.windows or 1, answers=destination,
    )  # fmt: skip
    outputs.write(out, {REPORT: (json.dumps(report.model_dump(mode="json"), indent=1) + "\n").encode()})
    return report


if __name__ == "__main__":
    from components.door import main

    main("batch")
