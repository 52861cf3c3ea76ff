"""The routes of batch predictions (K-57): asked for, listed, looked at, cancelled, resumed. The rows are answered by another process.

Addresses are taken only below the roots of ESTEIRA_BATCH_ROOTS, links followed. No database is opened before it is needed.
"""

import hashlib
import json
import re
import secrets
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from esteira.errors import EsteiraError
from esteira.settings import Settings
from serving.asked import asked_as
from serving.deployed import Deployed
from serving.deployments import Deployment, Source
from serving.job_runner import JobRunner
from serving.outside import Outside
from serving.problems import Problem

if TYPE_CHECKING:
    from esteira.store import BatchJob, BatchJobs

_SUBMIT = re.compile(r"/v1/models/([^/]+)/batch-predict")
_JOBS = "/v1/batch-predictions"
_JOB = re.compile(rf"{_JOBS}/([^/]+)(?:/(cancel|resume))?")
_MOST = 100  # jobs of a line that wait
# Small parts are many files, each written, synced and told to the store; a tiny rate holds the one place for months.
_LEAST_ROWS = 1000
_LISTED = 100
_RETRY = [(b"retry-after", b"5")]


def _whole(value: Any) -> Any:
    """JSON has one kind of number, so 1000.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Asked(BaseModel):
    """The body of a submission; see `esteira.batch.Job` for each word."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    data: Annotated[str, Field(min_length=1, max_length=1000)]
    out: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    format: Literal["parquet", "csv", "jsonl"] = "parquet"
    rows_per_part: Annotated[Annotated[int, Field(ge=_LEAST_ROWS, le=60_000)] | None, BeforeValidator(_whole)] = None
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    rate: Annotated[float, Field(ge=1, le=1e9)] | None = None
    keep: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=100)] = []
    delimiter: Annotated[str, Field(max_length=1, pattern="^[\t -!#-~]?$")] = ""


class Jobs:
    """Batch predictions of a service. Safe to call from several threads.

    Args:
        deployed: what the lines serve now.
        source: finds the folder of a deployment, also of one that serves no more.
        settings: roots, store, tenant, device.
        period: seconds between two looks at the store.
        lease: seconds without a sign of life after which a job's process counts as lost.
    """

    def __init__(
        self, deployed: Deployed, source: Source, settings: Settings, *, period: float = 2.0, lease: float = 15.0
    ) -> None:
        self._deployed, self._settings = deployed, settings
        self._runner = JobRunner(source, settings, self._store, period=period, lease=lease)
        self._outside = Outside(settings.request_seconds)
        self._opened: BatchJobs | None = None
        self._lock = threading.Lock()

    def takes(self, path: str) -> bool:
        """Whether a path is one of these routes."""
        return path == _JOBS or _SUBMIT.fullmatch(path) is not None or _JOB.fullmatch(path) is not None

    def start(self) -> None:
        """Work on jobs of these lines from now on, those too that another service left; without roots there are none."""
        if self._settings.batch_roots:
            self._runner.start()

    def stop(self) -> None:
        """Leave the job that is under way for whoever comes next; takes some seconds at most."""
        self._runner.stop()

    async def handle(
        self, method: str, path: str, body: bytes, role: str, request_id: str = ""
    ) -> tuple[int, dict[str, Any]]:
        """Status and document of a request to one of these routes.

        Args:
            role: whose key it is.
            request_id: that the caller gave, if any; what the same key submits with the same one and the same body is one job.

        Raises:
            Problem: 400, 403, 404, 405, 409, 422, 429 or 503.
        """
        submit, job = _SUBMIT.fullmatch(path), _JOB.fullmatch(path)
        verb = "submit" if submit else (job[2] or "look") if job else "list"
        wanted = ("GET", "HEAD") if verb in ("look", "list") else ("POST",)
        if method not in wanted:
            allowed = ", ".join(wanted)
            raise Problem(
                405, "method", f"this route takes {allowed}, but got {method}", headers=[(b"allow", allowed.encode())]
            )
        if not self._settings.batch_roots:
            raise Problem(
                403, "no_batch_roots", "this service takes no batch predictions: ESTEIRA_BATCH_ROOTS names no folder"
            )
        try:
            if submit:
                return await self._outside.ask(partial(self._submit, submit[1], body, role, request_id))
            if job is None:
                return await self._outside.ask(self._list)
            return await self._outside.ask(
                partial({"look": self._look, "cancel": self._cancel, "resume": self._resume}[verb], job[1])
            )
        except EsteiraError as error:
            raise Problem(
                503, error.code, "the store of batch predictions does not answer now", headers=_RETRY
            ) from error

    def _store(self) -> "BatchJobs":
        with self._lock:
            if self._opened is None:
                from esteira.store import BatchJobs, Store

                self._opened = BatchJobs(Store.open(self._settings.database_url, tenant=self._settings.tenant))
            return self._opened

    def _submit(self, model: str, body: bytes, role: str, request_id: str) -> tuple[int, dict[str, Any]]:
        asked = asked_as(_Asked, body)
        job_id = _job_id(model, body, role, request_id)
        # Made already, though its caller was told that it took too long. The line may have moved on since, and the file be gone.
        if request_id and (made := self._store().find(job_id)) is not None:
            return 202, _view(made)
        deployment = self._deployment(model)
        if asked.format == "parquet":
            _must_write_parquet()
        data, root = self._allowed(asked.data, "data")
        out, _ = self._allowed(asked.out or f"{root.rstrip('/')}/batch-predictions/{job_id}", "out")
        if data.startswith("/") and not Path(data).exists():
            raise Problem(422, "missing_file", "there is no such file or folder", field="data")
        options = {"form": asked.format, "keep": asked.keep, "delimiter": asked.delimiter, "rate": asked.rate}
        options |= {"rows_per_part": _rows_per_part(asked), "max_bad_share": asked.max_bad_share}
        made = self._store().add(
            {
                "job_id": job_id, "line": deployment.line, "version": deployment.version,
                "bundle_id": deployment.bundle_id, "data": data, "out": out, "options": options, "created_by": role,
            },
            most=_MOST,
        )  # fmt: skip
        if made is None:
            raise Problem(
                429,
                "too_many_jobs",
                f"{_MOST} batch predictions of {deployment.line} wait already",
                headers=[(b"retry-after", b"60")],
            )
        self._runner.wake()
        return 202, _view(made)

    def _list(self) -> tuple[int, dict[str, Any]]:
        return 200, {"jobs": [_view(job) for job in self._store().latest(_LISTED)]}

    def _look(self, job_id: str) -> tuple[int, dict[str, Any]]:
        return 200, _view(self._found(job_id))

    def _cancel(self, job_id: str) -> tuple[int, dict[str, Any]]:
        from esteira.store.store import now

        found = self._found(job_id)
        moved = self._store().move(job_id, ("queued", "running"), state="cancelled", finished_at=now())
        if not moved and found.state != "cancelled":
            raise _wrong_state(self._found(job_id), "queued or running")
        return 200, _view(self._found(job_id))

    def _resume(self, job_id: str) -> tuple[int, dict[str, Any]]:
        from esteira.store.store import now

        found = self._found(job_id)
        anew = {"state": "queued", "queued_at": now(), "tries": 0, "failure": None, "finished_at": None}
        if not self._store().move(job_id, ("cancelled", "failed"), **anew):
            raise _wrong_state(found, "cancelled or failed")
        self._runner.wake()
        return 202, _view(self._found(job_id))

    def _found(self, job_id: str) -> "BatchJob":
        found = self._store().find(job_id) if re.fullmatch(r"[0-9a-f]{32}", job_id) else None
        if found is None:
            raise Problem(404, "unknown_job", "there is no such batch prediction", field="id")
        return found

    def _deployment(self, model: str) -> Deployment:
        for deployment in self._deployed.now.values():
            if model in (deployment.line, deployment.bundle_id):
                return deployment
        if model in self._deployed.lines:
            raise Problem(503, "no_model", f"line {model} has no released model", headers=_RETRY)
        raise Problem(
            404,
            "unknown_model",
            "a model is a line of this service, or the bundle_id of what one serves now",
            field="model",
        )

    def _allowed(self, address: str, field: str) -> tuple[str, str]:
        """The real address, once it lies below a root; and that root."""
        from esteira.batch.files import inside

        if not address.isprintable() or not address.startswith(("/", "s3://")):
            raise Problem(422, "bad_address", "an address is an absolute path or s3://bucket/key", field=field)
        for root in self._settings.batch_roots:
            try:
                found = inside(address, [root])
            except EsteiraError:
                continue
            return (address if address.startswith("s3://") else str(found)), root
        raise Problem(
            403, "outside_roots", "this address leaves the folders that batch predictions may use", field=field
        )


def _job_id(model: str, body: bytes, role: str, request_id: str) -> str:
    """32 hexadecimal digits, the same for the same submission."""
    if not request_id:
        return secrets.token_hex(16)
    asked = json.dumps([role, request_id, model, hashlib.sha256(body).hexdigest()])
    return hashlib.sha256(asked.encode()).hexdigest()[:32]


def _rows_per_part(asked: _Asked) -> int | None:
    """Rows of a part; where only a rate is given what a batch takes for it, but no fewer than a caller may ask for."""
    if asked.rows_per_part is not None or asked.rate is None:
        return asked.rows_per_part
    from esteira.batch.course import usual

    return max(_LEAST_ROWS, usual(asked.rate)[0])


def _must_write_parquet() -> None:
    from esteira.batch.forms import must_be_writable

    try:
        must_be_writable("parquet")
    except EsteiraError as error:
        raise Problem(422, error.code, f"{error.message}: ask for format jsonl or csv", field="format") from error


def _wrong_state(job: "BatchJob", wanted: str) -> Problem:
    return Problem(409, "wrong_state", f"a batch prediction must be {wanted} for that, but this one is {job.state}")


def _view(job: "BatchJob") -> dict[str, Any]:
    known = job.to_dict()
    shown = {
        name: known[name]
        for name in ("line", "version", "bundle_id", "state", "progress", "processed", "error", "rows")
    }
    errors = f"{job.out}/errors" + ("/" if job.out.startswith("s3://") else ".jsonl")
    return {
        "id": job.job_id,
        "model": job.line,
        **shown,
        "data": job.data,
        "out": job.out,
        "errors": errors if job.error else None,
        **{name: known[name] for name in ("failure", "created_at", "started_at", "finished_at")},
    }
