"""Batch predictions of a service: asked for over its routes, answered by another process, gone on with after any end."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esteira.batch import Job, Stopped, Summary, run
from esteira.batch.place import place_of
from esteira.errors import ConfigError, EsteiraError, OutsideError, Refused, SourceError
from esteira.registry import Registry, artefacts
from esteira.settings import Settings, load_settings
from esteira.store import BatchJob, BatchJobs, Store
from esteira.store.store import now
from serving.deployments import Deployment, Folder, FromRegistry, Source
from serving.job_room import room
from serving.job_runner import counts
from serving.jobs import Jobs
from serving.problems import Problem
from tests.batches import answered, errors, some_rows, write
from tests.serving_lines import add_row, point_champion
from tests.serving_process import Service as Running
from tests.serving_process import descendants, gone
from tests.small_bundle import make_bundle
from tests.stores import sqlite_store, sqlite_template, store, store_url

__all__ = ["sqlite_store", "sqlite_template", "store", "store_url"]

LINE = "tabular@shop-buys"


class Service:
    """Jobs as a service has them, over what a source has; `root` is where data and results may lie."""

    def __init__(self, source: Source, settings: Settings) -> None:
        deployed: Any = SimpleNamespace(now={LINE: source.current(LINE)}, lines=(LINE, "tabular@empty"))
        self.settings, self.source, self.deployed = settings, source, deployed
        self.jobs = self.made()

    def made(self, lease: float = 30.0) -> Jobs:
        return Jobs(self.deployed, self.source, self.settings, period=0.05, lease=lease)

    def ask(
        self, path: str, document: Any = None, *, method: str = "", jobs: Jobs | None = None, role: str = "caller",
        request_id: str = "",
    ) -> tuple[int, Any]:  # fmt: skip
        body = document if isinstance(document, bytes) else b"" if document is None else json.dumps(document).encode()
        verb = method or ("GET" if document is None else "POST")
        assert (jobs or self.jobs).takes(path)
        try:
            return asyncio.run((jobs or self.jobs).handle(verb, path, body, role, request_id))
        except Problem as problem:
            return problem.status, problem.error

    def submit(self, **words: Any) -> Any:
        status, job = self.ask(f"/v1/models/{LINE}/batch-predict", words)
        assert 202 == status, job
        return job

    def wait(self, job: Any, until: Callable[[Any], bool], seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.ask(f"/v1/batch-predictions/{job['id']}")[1]
            if until(found):
                return found
            time.sleep(0.05)
        raise AssertionError(found)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs") / "bundle"
    make_bundle(folder)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def service(bundle: Path, root: Path, sqlite_store: Store) -> Iterator[Service]:
    url = sqlite_store.engine.url.render_as_string(hide_password=False)
    made = Service(Folder(bundle), load_settings({"ESTEIRA_DATABASE_URL": url, "ESTEIRA_BATCH_ROOTS": str(root)}, None))
    yield made
    made.jobs.stop()


def _ended(job: Any) -> bool:
    return job["state"] in {"done", "failed", "cancelled"}


@pytest.mark.requirement("K-57")
def test_a_thousand_rows_of_which_three_are_bad(service: Service, root: Path) -> None:
    """K-57 Done when: 1,000 rows with 3 bad give processed 997, error 3, progress 100."""
    rows = some_rows(1000)
    for number in (10, 400, 999):
        rows[number]["age"] = "?!"
    data = write(root / "rows.csv", rows)
    service.jobs.start()

    job = service.submit(data=str(data), keep=["city"])
    assert ("queued", 0, None) == (job["state"], job["progress"], job["errors"])
    done = service.wait(job, _ended)

    assert ("done", 997, 3, 100) == (done["state"], done["processed"], done["error"], done["progress"])
    assert (LINE, None, 1000) == (done["line"], done["version"], done["rows"])
    out = Path(done["out"])
    assert out.is_relative_to(root)
    assert 997 == len(answered(out))
    assert [11, 401, 1000] == [error["row"] for error in errors(out)]
    assert str(out / "errors.jsonl") == done["errors"]
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]


def test_a_bundle_id_names_a_model_too(service: Service, root: Path) -> None:
    data = write(root / "rows.jsonl", some_rows(10))
    bundle_id = service.source.current(LINE).bundle_id  # type: ignore[union-attr]

    status, job = service.ask(f"/v1/models/{bundle_id}/batch-predict", {"data": str(data), "format": "jsonl"})

    assert (202, bundle_id) == (status, job["bundle_id"])


def test_a_job_is_cancelled_and_resumed_where_it_was(service: Service, root: Path) -> None:
    data = write(root / "rows.csv", some_rows(10_000))
    service.jobs.start()
    job = service.submit(data=str(data), rate=2000, rows_per_part=1000)
    service.wait(job, lambda job: job["processed"] >= 1000)

    status, cancelled = service.ask(f"/v1/batch-predictions/{job['id']}/cancel", {})
    assert (200, "cancelled") == (status, cancelled["state"])
    assert 200 == service.ask(f"/v1/batch-predictions/{job['id']}/cancel", {})[0], "again is no error"
    assert (Path(job["out"]) / "journal.jsonl").exists()

    status, resumed = service.ask(f"/v1/batch-predictions/{job['id']}/resume", {})
    assert (202, "queued") == (status, resumed["state"])
    done = service.wait(job, _ended)
    assert ("done", 10_000, 100) == (done["state"], done["processed"], done["progress"])
    assert list(range(1, 10_001)) == [row["row"] for row in answered(Path(job["out"]))]
    assert (409, "wrong_state") == _told(service.ask(f"/v1/batch-predictions/{job['id']}/cancel", {}))
    assert (409, "wrong_state") == _told(service.ask(f"/v1/batch-predictions/{job['id']}/resume", {}))


def test_a_service_that_starts_again_goes_on_with_what_was_left(service: Service, root: Path) -> None:
    data = write(root / "rows.csv", some_rows(10_000))
    service.jobs.start()
    job = service.submit(data=str(data), rate=1500, rows_per_part=1000)
    service.wait(job, lambda job: job["processed"] >= 1000)
    service.jobs.stop()
    assert "queued" == service.wait(job, lambda _: True)["state"]
    assert 0 == _kept(service, job).tries, "that is no try that failed"

    again = service.made()
    again.start()
    try:
        done = service.wait(job, _ended)
    finally:
        again.stop()

    assert ("done", 10_000) == (done["state"], done["processed"])
    assert list(range(1, 10_001)) == [row["row"] for row in answered(Path(job["out"]))]


def test_a_job_of_a_service_that_was_killed_is_begun_again_by_another(service: Service, root: Path) -> None:
    data = write(root / "rows.csv", some_rows(300))
    job = service.submit(data=str(data))
    kept = BatchJobs(Store.open(service.settings.database_url))
    assert kept.claim("a service that is no more", lease=30.0) is not None
    again = service.made(lease=0.2)
    again.start()
    try:
        done = service.wait(job, _ended)
    finally:
        again.stop()

    assert ("done", 300) == (done["state"], done["processed"])


def test_a_process_that_is_killed_is_a_job_that_failed_and_can_be_resumed(service: Service, root: Path) -> None:
    data = write(root / "rows.csv", some_rows(10_000))
    service.jobs.start()
    job = service.submit(data=str(data), rate=1500, rows_per_part=1000)
    service.wait(job, lambda job: job["processed"] >= 1000)

    for pid in _processes():
        os.kill(pid, signal.SIGKILL)
    failed = service.wait(job, _ended)
    assert ("failed", "process_died") == (failed["state"], failed["failure"]["code"])

    assert 202 == service.ask(f"/v1/batch-predictions/{job['id']}/resume", {})[0]
    done = service.wait(job, lambda job: job["state"] == "done")
    assert done["failure"] is None
    assert list(range(1, 10_001)) == [row["row"] for row in answered(Path(job["out"]))]


def _processes() -> list[int]:
    """Those of jobs."""
    own = descendants(os.getpid())[1:]
    return [pid for pid in own if b"esteira.batch" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _kept(service: Service, job: Any) -> BatchJob:
    found = BatchJobs(Store.open(service.settings.database_url)).find(job["id"])
    assert found is not None
    return found


def test_a_job_that_was_begun_three_times_without_a_part_has_failed(service: Service, root: Path) -> None:
    data = write(root / "rows.csv", some_rows(1000))
    first, second = service.submit(data=str(data)), service.submit(data=str(data))
    kept = BatchJobs(Store.open(service.settings.database_url))
    for number in range(3):
        claimed = kept.claim(f"service {number}, which the job kills", lease=0)
        assert claimed is not None
        assert (first["id"], number + 1) == (claimed.job_id, claimed.tries)

    again = service.made(lease=0.2)
    again.start()
    try:
        assert "done" == service.wait(second, _ended)["state"]
        failed = service.wait(first, _ended)
        assert ("failed", "process_died") == (failed["state"], failed["failure"]["code"])
        assert 202 == service.ask(f"/v1/batch-predictions/{first['id']}/resume", {})[0]
        assert 1000 == service.wait(first, lambda job: job["state"] == "done")["processed"]
    finally:
        again.stop()


def test_a_part_that_was_finished_makes_the_tries_begin_anew(service: Service, root: Path) -> None:
    data = write(root / "rows.csv", some_rows(10_000))
    job = service.submit(data=str(data), rate=1500, rows_per_part=1000)
    kept = BatchJobs(Store.open(service.settings.database_url))
    for _ in range(2):
        assert kept.claim("a service that is no more", lease=0) is not None
    again = service.made(lease=0.2)
    again.start()
    try:
        service.wait(job, lambda job: job["processed"] >= 1000)
        assert 0 == _kept(service, job).tries
    finally:
        again.stop()


@pytest.mark.parametrize(
    ("error", "code", "state"),
    [
        (Refused, "bundle_trouble", "failed"),
        (SourceError, "bundle_trouble", "failed"),
        (OutsideError, "bundle_trouble", "done"),
        (Refused, "locked", "done"),
    ],
    ids=["spoiled", "gone", "away", "fetched by another process"],
)
def test_a_bundle_that_cannot_be_had_holds_no_other_job(
    error: type[EsteiraError], code: str, state: str, service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder, troubles = write(root / "rows.csv", some_rows(10)), service.source.folder, [1]

    def troubled(deployment: Deployment) -> Path:
        if troubles:
            troubles.clear()
            raise error("the bundle must be what was sealed", code=code, where="storage", cure="look there")
        return folder(deployment)

    monkeypatch.setattr(service.source, "folder", troubled)
    first, second = service.submit(data=str(data)), service.submit(data=str(data))
    service.jobs.start()

    assert "done" == service.wait(second, _ended)["state"]
    ended = service.wait(first, _ended)
    assert state == ended["state"]
    if state == "failed":
        assert {"code": "bundle_trouble", "message": "the bundle must be what was sealed"} == ended["failure"]
    else:
        assert str(_kept(service, second).finished_at) < str(_kept(service, first).finished_at), (
            "it waited behind the other"
        )


class TestFetch:
    """The bundle of a job takes long to come."""

    @pytest.fixture
    def asked(self) -> list[Deployment]:
        """The bundles that were asked for."""
        return []

    @pytest.fixture
    def comes(
        self, service: Service, asked: list[Deployment], monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[threading.Event]:
        """Lets the one come that was asked for first; the others come at once."""
        monkeypatch.setattr("serving.job_runner._BEAT", 0.02)
        folder, event = service.source.folder, threading.Event()

        def slow(deployment: Deployment) -> Path:
            asked.append(deployment)
            if len(asked) == 1:
                event.wait(120)
            return folder(deployment)

        monkeypatch.setattr(service.source, "folder", slow)
        yield event
        event.set()

    def test_signs_of_life_are_given_meanwhile_so_that_it_is_begun_once(
        self, service: Service, root: Path, asked: list[Deployment], comes: threading.Event
    ) -> None:
        job = service.submit(data=str(write(root / "rows.csv", some_rows(10))))
        service.jobs.start()

        def beats() -> bool:
            kept = _kept(service, job)
            return kept.started_at is not None and kept.beat_at is not None and kept.beat_at > kept.started_at

        _until(beats)
        assert ("running", 1) == (_kept(service, job).state, _kept(service, job).tries)
        comes.set()
        done = service.wait(job, _ended)
        assert ("done", 10, 1) == (done["state"], done["processed"], len(asked))

    def test_a_job_that_is_cancelled_meanwhile_holds_no_other(
        self, service: Service, root: Path, asked: list[Deployment], comes: threading.Event
    ) -> None:
        data = str(write(root / "rows.csv", some_rows(10)))
        first, second = service.submit(data=data), service.submit(data=data)
        service.jobs.start()
        _until(lambda: len(asked) == 1)

        assert 200 == service.ask(f"/v1/batch-predictions/{first['id']}/cancel", {})[0]

        assert "done" == service.wait(second, _ended)["state"]
        assert not comes.is_set()
        assert "cancelled" == service.wait(first, _ended)["state"]

    def test_one_that_hangs_is_put_behind_the_others(
        self,
        service: Service,
        root: Path,
        asked: list[Deployment],
        comes: threading.Event,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("serving.job_runner._FETCH", 0.1)
        data = str(write(root / "rows.csv", some_rows(10)))
        first, second = service.submit(data=data), service.submit(data=data)
        service.jobs.start()

        assert "done" == service.wait(second, _ended)["state"]
        assert not comes.is_set()
        assert "done" == service.wait(first, _ended)["state"]
        assert 3 == len(asked)

    def test_one_that_hangs_each_time_fails_its_job_in_the_end(
        self, service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("serving.job_runner._BEAT", 0.02)
        monkeypatch.setattr("serving.job_runner._FETCH", 0.1)
        ends = threading.Event()
        monkeypatch.setattr(service.source, "folder", lambda _: ends.wait(120))
        job = service.submit(data=str(write(root / "rows.csv", some_rows(10))))
        service.jobs.start()
        try:
            failed = service.wait(job, _ended)
        finally:
            ends.set()

        assert ("failed", "process_died") == (failed["state"], failed["failure"]["code"])

    def test_a_service_that_ends_meanwhile_leaves_the_job_as_it_was(
        self, service: Service, root: Path, asked: list[Deployment], comes: threading.Event
    ) -> None:
        job = service.submit(data=str(write(root / "rows.csv", some_rows(10))))
        service.jobs.start()
        _until(lambda: len(asked) == 1)

        service.jobs.stop()

        assert not comes.is_set()
        assert ("queued", 0) == (_kept(service, job).state, _kept(service, job).tries)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Moto's server, which answers as S3 does, with a bucket `models`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    yield client
    # What it holds belongs to the process, and would be there for the next test.
    for entry in client.list_objects_v2(Bucket="models").get("Contents", ()):
        client.delete_object(Bucket="models", Key=entry["Key"])
    server.stop()


@pytest.mark.parametrize("lost", ["manifest.json", "graph.onnx"])
def test_a_version_whose_bundle_is_gone_from_s3_fails_its_job_and_the_next_is_done(
    lost: str, s3: Any, root: Path, tmp_path: Path, sqlite_store: Store
) -> None:
    settings = load_settings(
        {
            "ESTEIRA_DATABASE_URL": sqlite_store.engine.url.render_as_string(hide_password=False),
            "ESTEIRA_BATCH_ROOTS": str(root), "ESTEIRA_HOME": str(tmp_path / "home"),
            "ESTEIRA_ARTIFACTS": "s3://models/here",
        },
        None,
    )  # fmt: skip
    ids: list[str] = []
    jobs: list[Any] = []
    for number in (1, 2):
        folder = tmp_path / f"v{number}"
        ids.append(make_bundle(folder, weight=0.01 * number))
        model = artefacts.put(folder, ids[-1], root=settings.artifacts, name="shop", run=f"run{number}", mlmodel="")
        add_row(sqlite_store, number, ids[-1], artefacts.bundle_uri(model))
    source = FromRegistry(Registry(settings), [LINE])
    data, made = write(root / "rows.csv", some_rows(10)), Service(source, settings)
    for number in (1, 2):
        point_champion(sqlite_store, number, ids[number - 1])
        made.deployed.now = {LINE: source.current(LINE)}
        jobs.append(made.submit(data=str(data)))
    s3.delete_object(Bucket="models", Key=f"here/shop/run1/artifacts/model/bundle/{lost}")

    made.jobs.start()
    try:
        done, failed = (made.wait(job, _ended) for job in reversed(jobs))
    finally:
        made.jobs.stop()

    assert ("failed", "missing_bundle", 1) == (failed["state"], failed["failure"]["code"], failed["version"])
    assert ("done", 10, 2) == (done["state"], done["processed"], done["version"])


def test_progress_stays_where_a_service_ends_before_the_rows_are_known(bundle: Path, root: Path) -> None:
    words = Job(
        bundle=bundle, data=str(write(root / "rows.csv", some_rows(300))), out=str(root / "out"), rows_per_part=100
    )
    told: list[Summary] = []
    with pytest.raises(Stopped):
        run(words, stop=lambda: len(told) >= 2, tell=told.append)

    with pytest.raises(Stopped) as stopped:
        run(words, stop=lambda: True)

    assert stopped.value.summary.rows is None
    assert {"processed": 200, "error": 0, "rows": 300, "progress": 66} == counts(vars(told[-1]))
    assert {"processed": 200, "error": 0} == counts(vars(stopped.value.summary))


class TestSubmittedTwice:
    """A submission that was answered 503, because its time was up, may have made the job."""

    def _submitted(self, service: Service, body: Any, **words: Any) -> Any:
        status, job = service.ask(f"/v1/models/{words.pop('model', LINE)}/batch-predict", body, **words)
        assert 202 == status, job
        return job

    def test_with_its_request_id_it_is_the_same_job(self, service: Service, root: Path) -> None:
        data = write(root / "rows.csv", some_rows(3))
        first = self._submitted(service, {"data": str(data)}, request_id="order-17")

        assert first == self._submitted(service, {"data": str(data)}, request_id="order-17")
        assert [first] == service.ask("/v1/batch-predictions")[1]["jobs"]
        data.unlink()
        service.deployed.now = {}
        again = self._submitted(service, {"data": str(data)}, request_id="order-17")
        assert first == again, "the line moved on and the file is gone, but the job was made"

    def test_everything_else_is_another_job(self, service: Service, root: Path) -> None:
        body = {"data": str(write(root / "rows.csv", some_rows(3)))}
        bundle_id = service.deployed.now[LINE].bundle_id
        made = [
            self._submitted(service, body, request_id="order-17"),
            self._submitted(service, body, request_id="order-18"),
            self._submitted(service, {**body, "keep": ["city"]}, request_id="order-17"),
            self._submitted(service, body, request_id="order-17", role="operator"),
            self._submitted(service, body, request_id="order-17", model=bundle_id),
            self._submitted(service, body),
            self._submitted(service, body),
        ]

        assert len(made) == len({job["id"] for job in made}) == len({job["out"] for job in made})

    def test_what_was_refused_is_looked_at_anew(self, service: Service, root: Path) -> None:
        body = {"data": str(root / "rows.csv")}
        path = f"/v1/models/{LINE}/batch-predict"
        assert (422, "missing_file") == _told(service.ask(path, body, request_id="order-17"))
        write(root / "rows.csv", some_rows(3))

        assert 202 == service.ask(path, body, request_id="order-17")[0]


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ({}, None),
        ({"rate": 1}, 1000),
        ({"rate": 100}, 6000),
        ({"rate": 1e6}, 60_000),
        ({"rate": 1, "rows_per_part": 2000}, 2000),
    ],
)
def test_a_part_of_a_job_has_a_thousand_rows_at_least_also_with_a_rate(
    words: dict[str, Any], rows: int | None, service: Service, root: Path
) -> None:
    job = service.submit(data=str(write(root / "rows.csv", some_rows(3))), **words)

    assert rows == _kept(service, job).options["rows_per_part"]


def test_jobs_of_other_lines_and_bundles_are_left_to_other_services(service: Service, root: Path) -> None:
    kept = BatchJobs(Store.open(service.settings.database_url))
    others = {"1" * 32: {"line": "tabular@other"}, "2" * 32: {"line": LINE}, "3" * 32: {"line": LINE, "version": None}}
    for job_id, words in others.items():
        kept.add({**_values(job_id), **words}, most=10)
    service.jobs.start()

    done = service.wait(service.submit(data=str(write(root / "rows.csv", some_rows(10)))), _ended)

    assert "done" == done["state"]
    for job_id in others:
        found = service.ask(f"/v1/batch-predictions/{job_id}")[1]
        assert ("queued", None) == (found["state"], found["failure"]), "another service may have its bundle"


def test_a_job_whose_folder_is_taken_waits_behind_the_others(
    service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.job_runner._END", 0.3)
    data = str(write(root / "rows.csv", some_rows(10)))
    with place_of(str(root / "taken")).alone():
        first = service.submit(data=data, out=str(root / "taken"))
        others = [service.submit(data=data) for _ in range(2)]
        service.jobs.start()
        for job in others:
            assert "done" == service.wait(job, _ended)["state"]
        assert not _ended(service.wait(first, lambda _: True))

    assert "done" == service.wait(first, _ended)["state"]


def test_the_temporary_files_of_a_job_go_with_its_process_however_it_ends(
    service: Service, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    data = write(root / "rows.csv", some_rows(10_000))
    job = service.submit(data=str(data), rate=1500, rows_per_part=1000)
    left = tmp_path / "tmp" / f"esteira-batch-{job['id']}-left"
    left.mkdir()
    former = left / "of a service that was killed"
    former.write_bytes(b"rows")
    service.jobs.start()
    service.wait(job, lambda job: job["processed"] >= 1000)

    (pid,) = _processes()
    (made,) = (tmp_path / "tmp").iterdir()
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert made.name.startswith(f"esteira-batch-{job['id']}-")
    assert f"TMPDIR={made}".encode() in environment
    assert not former.exists()
    (made / "a copy of an object").write_bytes(b"rows")
    os.kill(pid, signal.SIGKILL)

    assert "failed" == service.wait(job, _ended)["state"]
    _until(lambda: not made.exists())


class TestRoom:
    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The temporary folder of this machine."""
        (tmp_path / "tmp").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
        return tmp_path / "tmp"

    def test_two_runners_of_one_job_have_a_room_each(self, place: Path) -> None:
        with room("a" * 32) as (first, _):
            (first / "copy").write_bytes(b"rows")
            with room("a" * 32) as (second, _):
                assert first != second
                assert (0o700, []) == (second.stat().st_mode & 0o777, list(second.iterdir()))
            assert ([first], b"rows") == (list(place.iterdir()), (first / "copy").read_bytes())
        assert [] == list(place.iterdir())

    def test_what_is_no_room_stays(self, place: Path, tmp_path: Path) -> None:
        kept = [
            "esteira-batch-12345678",
            "esteira-batch-x-1",
            f"esteira-batch-{'a' * 32}",
            f"esteira-batch-{'a' * 32}-link",
        ]
        for name in kept[:-1]:
            (place / name).mkdir()
        (tmp_path / "other").mkdir()
        (place / kept[-1]).symlink_to(tmp_path / "other")

        with room("a" * 32):
            pass

        assert sorted(kept) == sorted(path.name for path in place.iterdir())
        assert (tmp_path / "other").is_dir()

    def test_a_room_stays_until_the_process_ends_that_outlives_its_service(self, place: Path) -> None:
        code = (
            "import subprocess, sys; from serving.job_room import room\n"
            "with room('a' * 32) as (folder, lock):\n"
            "    words = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
            "    child = subprocess.Popen(words, pass_fds=(lock,), stdout=subprocess.DEVNULL)\n"
            "    print(child.pid, folder, flush=True)\n"
            "    sys.stdin.read()\n"
        )
        service = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TMPDIR": str(place)},
        )  # fmt: skip
        assert service.stdout is not None
        pid, _, folder = service.stdout.readline().strip().partition(" ")
        try:
            service.kill()
            service.communicate()
            with room("b" * 32):
                assert Path(folder).is_dir()
        finally:
            os.kill(int(pid), signal.SIGKILL)

        def swept() -> bool:
            with room("b" * 32):
                return not Path(folder).exists()

        _until(swept)


def test_the_latest_jobs_are_listed_the_newest_first(service: Service, root: Path) -> None:
    assert (200, {"jobs": []}) == service.ask("/v1/batch-predictions")
    data = str(write(root / "rows.csv", some_rows(3)))
    made = [service.submit(data=data) for _ in range(3)]
    elsewhere = BatchJobs(Store.open(service.settings.database_url, tenant="another"))
    elsewhere.add(_values("4" * 32), most=10)

    status, found = service.ask("/v1/batch-predictions")

    assert 200 == status
    assert list(reversed(made)) == found["jobs"]
    assert (405, "method") == _told(service.ask("/v1/batch-predictions", {}))


def test_too_many_bad_rows_fail_a_job_with_the_reason(service: Service, root: Path) -> None:
    rows = some_rows(100)
    for row in rows[:30]:
        row["age"] = "?!"
    service.jobs.start()
    job = service.submit(data=str(write(root / "rows.csv", rows)))

    failed = service.wait(job, _ended)

    assert ("failed", "too_many_bad_rows") == (failed["state"], failed["failure"]["code"])
    assert 30 == len({error["row"] for error in errors(Path(job["out"]))})


def test_one_job_is_under_way_at_a_time_whoever_works(service: Service, root: Path) -> None:
    first, second = service.jobs, service.made()
    for jobs in (first, second):
        jobs.start()
    try:
        made = [
            service.submit(data=str(write(root / f"{name}.csv", some_rows(3000))), rate=1500, rows_per_part=1000)
            for name in "abc"
        ]
        most = 0
        until = time.monotonic() + 60
        while time.monotonic() < until:
            states = [service.ask(f"/v1/batch-predictions/{job['id']}")[1]["state"] for job in made]
            most = max(most, states.count("running"))
            if states.count("done") == 3:
                break
            time.sleep(0.02)
    finally:
        second.stop()

    assert ["done"] * 3 == states
    assert 1 == most


def test_addresses_outside_of_the_roots_are_refused(service: Service, root: Path, tmp_path: Path) -> None:
    write(root / "rows.csv", some_rows(3))
    other = tmp_path / "other"
    other.mkdir()
    write(other / "rows.csv", some_rows(3))
    (root / "link.csv").symlink_to(other / "rows.csv")
    (root / "way").symlink_to(other)
    path = f"/v1/models/{LINE}/batch-predict"

    for words in (
        {"data": str(other / "rows.csv")},
        {"data": str(root / "link.csv")},
        {"data": f"{root}/../other/rows.csv"},
        {"data": "s3://lake/rows.csv"},
        {"data": "s3://lake/in/../rows.csv"},
        {"data": str(root / "rows.csv"), "out": str(other / "out")},
        {"data": str(root / "rows.csv"), "out": str(root / "way" / "out")},
        {"data": "/etc/passwd"},
    ):
        assert (403, "outside_roots") == _told(service.ask(path, words)), words
    for address in ("rows.csv", "file:///etc/passwd", "~/rows.csv", "sqlite:///x.db", "/a\0b"):
        assert (422, "bad_address") == _told(service.ask(path, {"data": address})), address
    assert (422, "missing_file") == _told(service.ask(path, {"data": str(root / "none.csv")}))


def test_a_link_that_is_made_after_the_submission_leads_nowhere(service: Service, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write(other / "rows.csv", some_rows(3))
    data = write(root / "rows.csv", some_rows(3))
    job = service.submit(data=str(data))
    data.unlink()
    data.symlink_to(other / "rows.csv")

    service.jobs.start()

    failed = service.wait(job, _ended)
    assert ("failed", "outside_roots") == (failed["state"], failed["failure"]["code"])


def test_without_roots_there_are_no_jobs_and_no_database_is_opened(bundle: Path, tmp_path: Path) -> None:
    made = Service(Folder(bundle), load_settings({"ESTEIRA_DATABASE_URL": f"sqlite:///{tmp_path / 'none.db'}"}, None))
    made.jobs.start()

    assert (403, "no_batch_roots") == _told(made.ask(f"/v1/models/{LINE}/batch-predict", {"data": "/x"}))
    assert (403, "no_batch_roots") == _told(made.ask("/v1/batch-predictions/1"))
    made.jobs.stop()
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("roots", ["data", "/srv,../x", "s3://", "file:///srv", "~/data"])
def test_roots_are_absolute_folders_or_s3(roots: str) -> None:
    with pytest.raises(ConfigError, match="ESTEIRA_BATCH_ROOTS"):
        load_settings({"ESTEIRA_BATCH_ROOTS": roots}, None)
    assert ("/srv", "s3://lake/in/") == load_settings({"ESTEIRA_BATCH_ROOTS": "/srv, s3://lake/in/"}, None).batch_roots


def test_what_is_not_there_and_what_is_not_allowed_has_its_status(service: Service) -> None:
    path = f"/v1/models/{LINE}/batch-predict"

    assert (404, "unknown_model") == _told(service.ask("/v1/models/nothing/batch-predict", {"data": "/x"}))
    assert (503, "no_model") == _told(service.ask("/v1/models/tabular@empty/batch-predict", {"data": "/x"}))
    assert (404, "unknown_job") == _told(service.ask(f"/v1/batch-predictions/{'0' * 32}"))
    assert (404, "unknown_job") == _told(service.ask("/v1/batch-predictions/x'; drop table batch_jobs"))
    assert (405, "method") == _told(service.ask(path, method="GET"))
    assert (405, "method") == _told(service.ask("/v1/batch-predictions/x/cancel", method="DELETE"))
    assert (400, "bad_json") == _told(service.ask(path, b"{"))
    assert (422, "missing_field") == _told(service.ask(path, {}))
    assert (422, "unknown_field") == _told(service.ask(path, {"data": "/x", "workers": 9}))
    assert (422, "wrong_type") == _told(service.ask(path, {"data": "/x", "rows_per_part": 60_001}))
    assert (422, "wrong_type") == _told(service.ask(path, {"data": "/x", "rows_per_part": 1000.5}))
    assert (422, "wrong_type") == _told(service.ask(path, {"data": "/x", "rows_per_part": 999}))
    assert (422, "wrong_type") == _told(service.ask(path, {"data": "/x", "rate": 0.9}))
    assert (422, "wrong_type") == _told(service.ask(path, {"data": "/x", "delimiter": '"'}))
    assert (403, "outside_roots") == _told(service.ask(path, {"data": "/x", "rows_per_part": 1000.0, "rate": 1}))
    nothing = dict.fromkeys(("out", "rows_per_part", "rate"))
    assert (403, "outside_roots") == _told(service.ask(path, {"data": "/x", **nothing}))
    assert not service.jobs.takes("/v1/tabular/predict")
    assert not service.jobs.takes("/v1/batch-predictions/")


def test_more_jobs_than_may_wait_are_turned_away(service: Service, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.jobs._MOST", 2)
    data = write(root / "rows.csv", some_rows(3))
    for _ in range(2):
        service.submit(data=str(data))

    assert (429, "too_many_jobs") == _told(service.ask(f"/v1/models/{LINE}/batch-predict", {"data": str(data)}))


def test_a_store_that_is_away_is_a_503_without_its_words(bundle: Path, root: Path) -> None:
    url = "postgresql+psycopg2://ana:s3cret@127.0.0.1:1/shop"
    made = Service(Folder(bundle), load_settings({"ESTEIRA_DATABASE_URL": url, "ESTEIRA_BATCH_ROOTS": str(root)}, None))

    status, error = made.ask(f"/v1/batch-predictions/{'0' * 32}")

    assert (503, "store_away") == (status, error["code"])
    assert "s3cret" not in json.dumps(error)
    assert "psycopg" not in json.dumps(error)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(body=st.binary(max_size=40) | _JSON.map(lambda value: json.dumps(value).encode()) | st.fixed_dictionaries(
    {"data": _JSON}, optional=dict.fromkeys(("out", "keep", "rate", "format", "rows_per_part", "max_bad_share", "delimiter"), _JSON)
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_body_is_answered_with_a_4xx(body: bytes, service: Service) -> None:
    status, error = service.ask(f"/v1/models/{LINE}/batch-predict", body, method="POST")

    assert 400 <= status < 500
    assert {"code", "message"} <= error.keys()


@pytest.mark.slow
def test_a_service_that_is_killed_goes_on_with_its_job_when_it_is_started_again(
    bundle: Path, root: Path, tmp_path: Path
) -> None:
    """The real service over a socket, its whole tree killed by kill -9 in the middle of a job, and started again."""
    data = write(root / "rows.csv", some_rows(12_000))
    env = {
        "ESTEIRA_HOME": str(tmp_path / "home"), "ESTEIRA_BATCH_ROOTS": str(root), "ESTEIRA_DRAIN_SECONDS": "0",
        "ESTEIRA_DATABASE_URL": f"sqlite:///{tmp_path / 'store.db'}",
    }  # fmt: skip
    words = ["--bundle", str(bundle), "--port", "0"]
    first = Running(words, env=env, log=tmp_path / "first.log").wait_ready()
    try:
        asked = {"data": str(data), "rate": 2000, "rows_per_part": 1000}
        status, job, _ = first.ask(f"/v1/models/{LINE}/batch-predict", asked)
        assert 202 == status, job
        path = f"/v1/batch-predictions/{job['id']}"
        assert (401, 405) == (first.ask(path, key=None)[0], first.ask(path, method="DELETE")[0])
        _until(lambda: first.ask(path)[1]["processed"] >= 2000)
        tree = first.tree()
        assert [pid for pid in tree if b"esteira.batch" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    finally:
        for pid in first.tree():
            os.kill(pid, signal.SIGKILL)
        first.stop()
    assert gone(tree)

    second = Running(words, env=env, log=tmp_path / "second.log").wait_ready()
    try:
        _until(lambda: _ended(second.ask(path)[1]))
        status, done, _ = second.ask(path)
    finally:
        second.stop()
    assert (200, "done", 12_000, 0, 100) == (status, done["state"], done["processed"], done["error"], done["progress"])
    assert list(range(1, 12_001)) == [row["row"] for row in answered(Path(done["out"]))]


def _until(true: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


class TestStore:
    def test_a_job_is_claimed_once_and_again_when_its_owner_gives_no_sign(self, store: Store) -> None:
        jobs = BatchJobs(store)
        for name in ("a", "b"):
            assert jobs.add(_values(name), most=10) is not None

        assert jobs.waiting(lease=60)
        first = jobs.claim("one", lease=60)
        assert first is not None
        assert "a" == first.job_id
        assert jobs.claim("two", lease=60) is None, "one at a time"
        assert jobs.tell("a", "one", processed=5)
        assert not jobs.tell("a", "two", processed=6)
        lost = jobs.claim("two", lease=0)
        assert lost is not None
        assert ("a", "two", 5) == (lost.job_id, lost.owner, lost.processed)
        assert not jobs.tell("a", "one", processed=7), "the former owner has nothing to say any more"
        assert jobs.tell("a", "two", state="done", progress=100)
        following = jobs.claim("one", lease=60)
        assert following is not None
        assert "b" == following.job_id

    def test_a_job_that_ended_its_owners_too_often_fails_and_the_next_is_claimed(self, store: Store) -> None:
        jobs = BatchJobs(store)
        for name in ("a", "b"):
            jobs.add(_values(name), most=10)
        for number in range(3):
            claimed = jobs.claim(f"owner {number}", lease=0)
            assert claimed is not None
            assert ("a", number + 1) == (claimed.job_id, claimed.tries)

        following = jobs.claim("another", lease=0)

        assert following is not None
        assert "b" == following.job_id
        failed = jobs.find("a")
        assert failed is not None
        assert ("failed", None, 3) == (failed.state, failed.owner, failed.tries)
        assert failed.failure is not None
        assert "process_died" == failed.failure["code"]
        assert failed.finished_at is not None

    def test_a_job_is_claimed_by_who_has_its_bundle(self, store: Store) -> None:
        jobs = BatchJobs(store)
        jobs.add({**_values("a"), "line": "tabular@other"}, most=10)
        jobs.add({**_values("b"), "version": None}, most=10)
        jobs.add(_values("c"), most=10)

        for bundles, found in (
            ({}, None),
            ({"tabular": None}, None),
            ({LINE: "c" * 64}, None),
            ({LINE: None}, "c"),
            ({LINE: "b" * 64}, "b"),
            ({"tabular@other": None, LINE: None}, "a"),
            (None, "a"),
        ):
            assert (found is not None) is jobs.waiting(lease=60, bundles=bundles)
            claimed = jobs.claim("one", lease=60, bundles=bundles)
            assert found == (claimed and claimed.job_id)
            if claimed is not None:
                assert jobs.move(claimed.job_id, ("running",), state="queued")

    def test_who_was_put_back_waits_behind_the_others(self, store: Store) -> None:
        jobs = BatchJobs(store)
        for name in ("a", "b"):
            jobs.add(_values(name), most=10)
        assert jobs.claim("one", lease=60) is not None
        assert jobs.tell("a", "one", state="queued", queued_at=now())

        following = jobs.claim("one", lease=60)

        assert following is not None
        assert "b" == following.job_id
        assert ["b", "a"] == [job.job_id for job in jobs.latest(10)], "listed as they were asked for"
        assert ["b"] == [job.job_id for job in jobs.latest(1)]

    def test_a_job_moves_only_from_the_states_that_are_named(self, store: Store) -> None:
        jobs = BatchJobs(store)
        jobs.add(_values("a"), most=10)

        assert not jobs.move("a", ("cancelled", "failed"), state="queued")
        assert jobs.move("a", ("queued", "running"), state="cancelled")
        assert not jobs.waiting(lease=60)
        assert jobs.claim("one", lease=60) is None
        found = jobs.find("a")
        assert found is not None
        assert "cancelled" == found.state

    def test_no_tenant_sees_the_jobs_of_another(self, store: Store) -> None:
        BatchJobs(store).add(_values("a"), most=10)

        other = BatchJobs(Store(store.engine, "another-tenant"))
        assert other.find("a") is None
        assert other.claim("one", lease=0) is None
        assert not other.move("a", ("queued",), state="cancelled")
        assert [] == other.latest(10)

    def test_no_more_than_so_many_wait(self, store: Store) -> None:
        jobs = BatchJobs(store)
        assert jobs.add(_values("a"), most=1) is not None
        assert jobs.add(_values("b"), most=1) is None

    def test_those_of_a_line_that_nobody_serves_keep_no_other_line_out(self, store: Store) -> None:
        jobs = BatchJobs(store)
        for name in ("a", "b"):
            assert jobs.add({**_values(name), "line": "tabular@gone"}, most=2) is not None

        assert jobs.add({**_values("c"), "line": "tabular@gone"}, most=2) is None
        assert jobs.add(_values("d"), most=2) is not None

    def test_one_that_is_there_is_given_as_it_is_also_where_no_more_may_wait(self, store: Store) -> None:
        jobs = BatchJobs(store)
        first = jobs.add(_values("a"), most=1)
        assert first is not None

        assert first == jobs.add({**_values("a"), "data": "/other"}, most=1)
        assert jobs.move("a", ("queued",), state="cancelled")
        again = jobs.add(_values("a"), most=1)
        assert again is not None
        assert "cancelled" == again.state


def _values(job_id: str) -> dict[str, Any]:
    return {
        "job_id": job_id, "line": LINE, "version": 3, "bundle_id": "b" * 64, "data": "/in", "out": "/out",
        "options": {"form": "jsonl"}, "created_by": "caller",
    }  # fmt: skip


def _told(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1].get("code", "")
