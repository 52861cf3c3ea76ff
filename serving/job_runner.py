"""Works on the batch predictions of the store, one at a time, each in a process of its own that ends with this one.

A job whose service was killed is begun again by whoever looks next and has its bundle, and goes on where its journal ends; three
times without a part, and it failed.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import esteira
from esteira.errors import EsteiraError, OutsideError
from esteira.settings import Settings
from serving.deployments import Source
from serving.faults import worded
from serving.job_room import room
from serving.outside import in_thread

if TYPE_CHECKING:
    from esteira.store import BatchJob, BatchJobs

_BEAT = 0.5  # seconds between two looks at a job's process, or at its bundle on the way
_FETCH = 600.0  # seconds after which a fetch counts as one that hangs: meanwhile the job holds the one place
_END = 4.0  # seconds that it has to stop
_AGAIN = 10.0  # seconds before a job is begun again that stopped by itself
_LONGEST = 30.0

_log = logging.getLogger("serving")


class JobRunner:
    """One thread of a service.

    Args:
        source: finds the bundle of a job.
        settings: roots and device.
        store: opens the store of jobs, and may raise.
        period: seconds between two looks at the store.
        lease: seconds without a sign of life after which another runner begins the job again.
    """

    def __init__(
        self, source: Source, settings: Settings, store: "Callable[[], BatchJobs]", *, period: float, lease: float
    ) -> None:
        self._source, self._settings, self._store = source, settings, store
        self._period, self._lease = period, lease
        self._owner = os.urandom(16).hex()
        self._wake, self._ending = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="batch-predictions", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def wake(self) -> None:
        """Look at once."""
        self._wake.set()

    def stop(self) -> None:
        """End the job's process, which may go on later, and leave the job for whoever looks next."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_END + 2)

    def _run(self) -> None:
        pause, told = self._period, False
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self._ending:
                return
            try:
                jobs, ours = self._store(), self._bundles()
                job = None
                if jobs.waiting(lease=self._lease, bundles=ours):
                    job = jobs.claim(self._owner, lease=self._lease, bundles=ours)
                pause = self._period if job is None else self._work(jobs, job)
                told = False
            except Exception as error:  # noqa: BLE001 - a runner that ended would leave all jobs waiting unseen
                pause = min(max(pause, self._period) * 2, _LONGEST)
                if not told:
                    told = True
                    _log.warning("batch predictions wait, because they cannot be looked at: %s", worded(error))

    def _work(self, jobs: "BatchJobs", job: "BatchJob") -> float:
        """Run a job to its end, or until it is not ours any more; seconds before the next look."""
        from esteira.store.store import now

        def failed(code: str, message: str, **values: Any) -> float:
            failure = {"code": code, "message": message}
            jobs.tell(job.job_id, self._owner, state="failed", failure=failure, finished_at=now(), **values)
            return 0.0

        def later(pause: float, tries: int = 0, **values: Any) -> float:
            """Behind those that wait, which may be able to go on."""
            jobs.tell(job.job_id, self._owner, state="queued", queued_at=now(), tries=tries, **values)
            return pause

        fetching, until = in_thread(lambda: self._folder(job)), time.monotonic() + _FETCH
        while not wait((fetching,), _BEAT).done:
            if self._ending:
                jobs.tell(job.job_id, self._owner, state="queued", tries=job.tries - 1)
                return 0.0
            if time.monotonic() > until:
                return later(0.0, tries=job.tries)
            if not jobs.tell(job.job_id, self._owner):
                return 0.0  # cancelled
        try:
            folder = fetching.result()
        except EsteiraError as error:
            # What is away, or held by another process that fetches it, may be had later.
            if not isinstance(error, OutsideError) and error.code != "locked":
                return failed(error.code, error.message)
            later(0.0, tries=job.tries - 1)
            raise
        if folder is None:
            return failed("bundle_gone", f"bundle {job.bundle_id[:12]} of {job.line} is not there any more")
        with room(job.job_id) as (place, lock):
            process = _Process(self._words(job, folder), place, lock)
            try:
                while not process.ended(_BEAT) and not self._ending:
                    if not jobs.tell(job.job_id, self._owner, **_told(job, process)):
                        return 0.0  # cancelled
            finally:
                process.stop()
        values = _told(job, process)
        if process.state == "done":
            jobs.tell(job.job_id, self._owner, state="done", finished_at=now(), **values)
            return 0.0
        if self._ending:
            jobs.tell(job.job_id, self._owner, state="queued", **{**values, "tries": 0})
            return 0.0
        if process.failure is None:  # told to stop, by somebody else
            return later(_AGAIN, **{"tries": job.tries, **values})
        if process.failure["code"] == "locked":
            return later(self._period)
        return failed(**process.failure, **values)

    def _bundles(self) -> dict[str, str | None]:
        """Line -> the one bundle that is here of it; None where the registry has them all."""
        if self._source.moves:
            return dict.fromkeys(self._source.lines)
        here = [self._source.current(line) for line in self._source.lines]
        return {found.line: found.bundle_id for found in here if found is not None}

    def _folder(self, job: "BatchJob") -> Path | None:
        """Where the job's bundle lies, though the line may serve another one by now."""
        found = self._source.current(job.line)
        if (found is None or found.bundle_id != job.bundle_id) and job.version is not None:
            found = self._source.version(job.line, job.version)
        return None if found is None or found.bundle_id != job.bundle_id else self._source.folder(found)

    def _words(self, job: "BatchJob", folder: Path) -> dict[str, Any]:
        return {
            **job.options, "bundle": str(folder.absolute()), "bundle_id": job.bundle_id, "data": job.data, "out": job.out,
            "device": self._settings.device, "within": list(self._settings.batch_roots), "wait": 2 * _END,
        }  # fmt: skip


def _told(job: "BatchJob", process: "_Process") -> dict[str, Any]:
    """What the store is told; with a new part the tries begin anew."""
    said = process.counts()
    if said and said["processed"] + said["error"] > job.processed + job.error:
        said["tries"] = 0
    return said


def counts(said: Mapping[str, Any]) -> dict[str, Any]:
    """What the store is told of a summary of `esteira.batch`.

    Where the rows are not known, as while a source is copied, it keeps what was known of them before.
    """
    known = {name: said[name] for name in ("processed", "error")}
    return known if said["rows"] is None else {**known, "rows": said["rows"], "progress": said["progress"]}


class _Process:
    """A job's process. It stops where it may go on when its input ends, so it outlives nobody who started it.

    Args:
        words: of the job.
        place: its folder for temporary files.
        lock: a descriptor that it holds as long as it lives.

    Attributes:
        state: of the last summary.
        failure: `{"code", "message"}` once it failed.
    """

    def __init__(self, words: dict[str, Any], place: Path, lock: int) -> None:
        path = os.pathsep.join([str(Path(esteira.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "esteira.batch"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(lock,),
            env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "TMPDIR": str(place)},
        )  # fmt: skip
        self.state = "running"
        self.failure: dict[str, str] | None = None
        self._summary: dict[str, Any] = {}
        self._listener = threading.Thread(target=self._listen, name="batch-prediction", daemon=True)
        self._listener.start()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(words).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it ended at once; its code is looked at
            pass

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if "summary" in said:
                self._summary, self.state = said["summary"], said["summary"]["state"]
            elif "error" in said:
                self.failure = {name: said["error"][name] for name in ("code", "message")}

    def ended(self, seconds: float) -> bool:
        """Whether it ended, within so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def counts(self) -> dict[str, Any]:
        """What the store is told."""
        return counts(self._summary) if self._summary else {}

    def stop(self) -> None:
        """Let it stop where it may go on, or end it; then its last words are known."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        until = time.monotonic() + _END
        if not self.ended(max(0.0, until - time.monotonic())):
            self._process.kill()
            self._process.wait()
        self._listener.join(timeout=_END)
        self._process.stdout.close()
        if self._process.returncode != 0 and self.failure is None:
            self.failure = {
                "code": "process_died",
                "message": "the process that answered the rows died; resume it to go on",
            }
