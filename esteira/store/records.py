"""What the store gives back: frozen records, one class a table. Times are aware and UTC; they become ISO text in `to_dict`."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esteira.rollout.sums import ArmName


@dataclass(frozen=True)
class Record:
    """A row of one tenant."""

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}


@dataclass(frozen=True)
class Experiment(Record):
    """A line, as experiment tracking calls it. `runs` is how many there are."""

    name: str
    description: str
    created_by: str
    created_at: datetime
    runs: int = 0


@dataclass(frozen=True)
class Run(Record):
    """One run of a line. `params` is what was asked for; `error` is null unless it was held or failed."""

    run_id: str
    line: str
    status: str
    seed: int | None
    source: str
    params: dict[str, Any]
    metrics: dict[str, Any]
    error: dict[str, Any] | None
    bundle_id: str | None
    version: int | None
    pid: int
    pid_started: int | None
    host: str
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class Step(Record):
    """How one step of a run went: `ran`, `reused` or `failed`."""

    run_id: str
    name: str
    status: str
    seconds: float
    why: str
    started_at: datetime


@dataclass(frozen=True)
class Trial(Record):
    """One thing that a search tried. `score` is null where it could not be measured."""

    run_id: str
    number: int
    kind: str
    params: dict[str, Any]
    score: float | None
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Dataset(Record):
    """A data set by its bytes (K-08). `quality_score` lies in [0, 1]; `file_size` is bytes."""

    id: str
    name: str
    description: str | None
    dataset_type: str
    data_format: str
    source_type: str
    source_config: dict[str, Any] | None
    schema_config: dict[str, Any] | None
    statistics: dict[str, Any] | None
    file_path: str | None
    file_size: int | None
    row_count: int | None
    column_count: int | None
    quality_score: float | None
    content_hash: str
    is_processed: bool
    processed_at: datetime | None
    created_by: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Version(Record):
    """A registered version of a line; all but `state` and the two times of it never changes.

    Attributes:
        uri: of the bundle folder, `file://` or `s3://`.
        run_id, mlflow_run_id: the run that made it, in the platform store and in MLflow.
        data_hash: SHA-256 of the bytes it was trained on.
        deployed_at: when it last became the champion; null before the first time.
        model_type, algorithm, framework: what it is (K-05); null for what was registered before they were kept.
    """

    line: str
    version: int
    bundle_id: str
    uri: str
    run_id: str
    mlflow_run_id: str
    data_hash: str
    code_revision: str
    params_hash: str
    params: dict[str, Any]
    metrics: dict[str, Any]
    actor: str
    state: str
    archived_at: datetime | None
    created_at: datetime
    deployed_at: datetime | None = None
    model_type: str | None = None
    algorithm: str | None = None
    framework: str | None = None


@dataclass(frozen=True)
class Alias(Record):
    """Where a name of a line points. `mirrored` is false until MLflow shows the same."""

    line: str
    alias: str
    version: int
    bundle_id: str
    ledger_seq: int
    moved_at: datetime
    mirrored: bool


@dataclass(frozen=True)
class Approval(Record):
    """That a version may go to production: asked for, given, used or void (S-40).

    Attributes:
        bundle_id: what it is about; it counts for nothing else.
        state: `requested`, `approved`, `used` or `void`. One that expired stays `approved`.
        hours: how long an approval counts.
        policy: how the line is to be released, as it stood when it was asked for.
        approver: name of the key that approved.
        reason: of the last decision.
        ledger_seq: of its entry.
    """

    line: str
    version: int
    bundle_id: str
    state: str
    requested_by: str
    requested_at: datetime
    hours: float
    policy: dict[str, Any]
    approver: str | None
    approved_at: datetime | None
    expires_at: datetime | None
    reason: str
    ledger_seq: int


@dataclass(frozen=True)
class Prediction(Record):
    """One served request: how many rows, how long, how it ended."""

    id: int
    request_id: str
    line: str
    version: int | None
    bundle_id: str | None
    rows: int
    elapsed_ms: float
    status: int
    at: datetime


@dataclass(frozen=True)
class BatchJob(Record):
    """A batch prediction that a service was asked for (K-57).

    Attributes:
        data, out: addresses, as they were found to be allowed.
        options: the further words of `esteira.batch.Job`.
        rows: of the source; a number that is not exceeded until it is done, null where that is not known.
        processed, error: good and bad rows.
        progress: percent.
        failure: `{"code", "message"}` of one that failed.
        queued_at: when it was put at the end of the queue.
        tries: how often it was begun since it was put there or finished a part.
        owner: who works on it; `beat_at` is its last sign of life.
    """

    job_id: str
    line: str
    version: int | None
    bundle_id: str
    data: str
    out: str
    options: dict[str, Any]
    state: str
    rows: int | None
    processed: int
    error: int
    progress: int
    failure: dict[str, Any] | None
    created_by: str
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    tries: int
    owner: str | None
    beat_at: datetime | None


@dataclass(frozen=True)
class RolloutUnit(Record):
    """One answer of a rollout, whose truth may still come (H-41).

    Attributes:
        row_index: of the request, from 0.
        unit: `esteira.store.rollouts.unit_key` of what the share was decided by.
        arm: `candidate` or `control`: who answered. A unit of the candidate that the champion answered is not kept.
        stage: of the rollout when it was answered.
        version: that answered.
        answer: what was predicted, and no more of it than an outcome needs.
        outcome: in [0, 1]; null until the truth came, at `labelled_at`.
    """

    test_id: str
    request_id: str
    row_index: int
    line: str
    unit: str
    arm: "ArmName"
    stage: int
    version: int | None
    answer: dict[str, Any]
    at: datetime
    outcome: float | None = None
    labelled_at: datetime | None = None
