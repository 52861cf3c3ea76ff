"""A line reaches Kubeflow Pipelines through kfp's own client: uploaded once, run or scheduled, waited for; refusals are told."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from esteira.cli import main
from esteira.errors import ConfigError, OutsideError, Refused
from esteira.project import read_project
from pipelines.compile import Compiled, defaults, write
from pipelines.kubeflow import Kubeflow, Outcome, Uploaded
from pipelines.plan import Plan
from pipelines.resources import Volume
from pipelines.shape import NAMES
from pipelines.submit import check_source, cron_of, parameters
from tests.kfp_server import KfpServer, Refusal, check_cron, check_parameters, read_ir

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "s3cret-token"
SOURCE = "s3://bucket/rows.csv"
PLAN = Plan(line="tabular", source=SOURCE, target="y", seed=7, sections={step: {} for step in NAMES})


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return write(defaults("tabular", read_project(ROOT / "params.yaml")), tmp_path_factory.mktemp("submit"))


@pytest.fixture(autouse=True)
def _no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kfp's client reads a context of the user's own, whose place it knows since it was imported."""
    from kfp.client import Client

    monkeypatch.setattr(Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "no" / "context.json"))
    for name in [name for name in os.environ if name.startswith("KF_PIPELINES_") or name == "SSL_CERT_FILE"]:
        monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[KfpServer]:
    with KfpServer(token=TOKEN).serving() as running:
        yield running


@pytest.fixture
def kubeflow(server: KfpServer) -> Iterator[Kubeflow]:
    with Kubeflow(server.url, TOKEN) as asked:
        yield asked


def _submit(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    server: KfpServer,
    *arguments: str,
    project: Path = ROOT,
) -> tuple[int, dict[str, Any]]:
    monkeypatch.chdir(project)
    monkeypatch.setenv("ESTEIRA_KFP_TOKEN", TOKEN)
    with pytest.raises(SystemExit) as ended:
        main(["submit", *arguments, "--host", server.url, "--json"])
    told = capsys.readouterr()
    assert TOKEN not in told.out + told.err
    return int(ended.value.code or 0), json.loads(told.out)


class TestCommand:
    @pytest.fixture
    def submit(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: KfpServer
    ) -> Callable[..., tuple[int, dict[str, Any]]]:
        return lambda *arguments, **more: _submit(capsys, monkeypatch, server, *arguments, **more)

    def test_a_run_is_started_with_the_plan_s_parameters(self, submit: Any, server: KfpServer) -> None:
        code, told = submit(
            "tabular", "--as", "mine", "--source", SOURCE, "--target", "y", "--set", "train.trials=3", "--seed", "7",
            "--experiment", "spring",
        )  # fmt: skip

        assert (0, "submitted", "tabular@mine", True) == (code, told["status"], told["line"], told["uploaded"])
        (run,) = server.runs.values()
        assert (run["run_id"], f"{server.url}/#/runs/details/{run['run_id']}") == (told["run_id"], told["url"])
        asked = run["runtime_config"]["parameters"]
        assert ("tabular@mine", SOURCE, "y", 7, "@champion") == tuple(
            asked[name] for name in ("line", "source", "target", "seed", "champion")
        )
        assert ({"trials": 3}, {}) == (asked["train"], asked["deploy"])
        assert "spring" == server.experiments[run["experiment_id"]]["display_name"]

    def test_the_same_content_is_uploaded_once_and_other_parameters_are_not_content(
        self, submit: Any, server: KfpServer
    ) -> None:
        first = submit("tabular", "--as", "a", "--source", SOURCE, "--target", "y")[1]
        again = submit(
            "tabular", "--as", "a", "--source", "s3://bucket/new.csv", "--target", "y", "--set", "train.trials=9"
        )[1]

        assert (True, False) == (first["uploaded"], again["uploaded"])
        assert (1, 1, 2) == (len(server.pipelines), len(server.versions), len(server.runs))
        (version,) = server.versions.values()
        assert first["version"] == again["version"] == version["display_name"]
        assert re.fullmatch(r"esteira-tabular--a-[0-9a-f]{12}", first["version"])

    @pytest.mark.parametrize(("failed", "code", "status"), [("", 0, "released"), ("evaluate", 1, "failed")])
    def test_waiting_ends_with_the_run_s_outcome(
        self, failed: str, code: int, status: str, submit: Any, server: KfpServer
    ) -> None:
        server.states, server.failed = ("RUNNING", "FAILED" if failed else "SUCCEEDED"), failed

        got, told = submit("tabular", "--source", SOURCE, "--target", "y", "--wait", "--every", "0.01")

        assert (code, status) == (got, told["status"])
        assert set(NAMES) == set(told["steps"])

    def test_a_schedule_is_made_once_replaced_when_it_changes_and_removed(self, submit: Any, server: KfpServer) -> None:
        here = ("tabular", "--as", "a", "--source", SOURCE, "--target", "y")

        changes = [submit(*here, "--schedule", cron)[1]["change"] for cron in ("30 3 * * *", "30 3 * * *", "@daily")]

        assert ["created", "unchanged", "replaced"] == changes
        (kept,) = server.recurring_runs.values()
        assert ("tabular@a", "@daily", "ENABLED", True) == (
            kept["display_name"], kept["trigger"]["cron_schedule"]["cron"], kept["status"], kept["no_catchup"]
        )  # fmt: skip
        assert {} == server.runs
        assert [1, 0] == [submit("tabular@a", "--unschedule")[1]["removed"] for _ in range(2)]
        assert {} == server.recurring_runs

    def test_five_fields_mean_what_they_mean_everywhere(self, submit: Any, server: KfpServer) -> None:
        """KFP reads five fields as beginning with seconds: 03:30 every day would be three and a half minutes past each hour."""
        told = submit("tabular", "--source", SOURCE, "--target", "y", "--schedule", "30 3 * * *", "--name", "nightly")[
            1
        ]

        assert ("0 30 3 * * *", "nightly") == (told["cron"], told["schedule"])

    def test_who_stops_waiting_is_told_that_the_run_goes_on(
        self, submit: Any, server: KfpServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(_: float) -> None:
            raise KeyboardInterrupt

        server.states = ["RUNNING"]
        monkeypatch.setattr("pipelines.kubeflow.time.sleep", stop)

        code, told = submit("tabular", "--source", SOURCE, "--target", "y", "--wait")

        assert (1, "interrupted") == (code, told["error"]["code"])
        assert f"the run goes on whether we look or not: {server.url}/#/runs/details/" in told["error"]["cure"]

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("--source", "rows.csv", "--target", "y"), "local_source"),
            (("--source", "postgresql://ana:pw@db/rows#select 1", "--target", "y"), "password_in_source"),
            (("--source", SOURCE, "--target", "y", "--schedule", "daily at three"), "bad_schedule"),
            (("--source", SOURCE, "--target", "y", "--schedule", "1 2 3 4 5", "--wait"), "usage"),
            (("--source", SOURCE, "--target", "y", "--name", "x"), "usage"),
            (("--source", SOURCE, "--target", "y", "--set", "train.trails=3"), "bad_params"),
        ],
    )
    def test_what_cannot_work_is_refused_before_anything_is_sent(
        self, arguments: tuple[str, ...], code: str, submit: Any, server: KfpServer
    ) -> None:
        got, told = submit("tabular", *arguments)

        assert (2, code) == (got, told["error"]["code"])
        assert told["error"]["cure"]
        assert [] == server.requests

    def test_a_cron_that_the_server_does_not_take_leaves_no_schedule(self, submit: Any, server: KfpServer) -> None:
        got, told = submit("tabular", "--source", SOURCE, "--target", "y", "--schedule", "61 3 * * *")

        assert (1, "kfp_refused") == (got, told["error"]["code"])
        assert "not a supported format" in told["error"]["message"]
        assert {} == server.recurring_runs

    def test_a_pipeline_that_breaks_a_rule_is_not_sent(self, submit: Any, server: KfpServer, tmp_path: Path) -> None:
        (tmp_path / "params.yaml").write_text(
            "families: {tabular: {source: /srv/rows.csv, target: y}}\n", encoding="utf-8"
        )

        got, told = submit("tabular", "--source", SOURCE, project=tmp_path)

        assert (2, "bad_pipeline") == (got, told["error"]["code"])
        assert "local_path" in told["error"]["message"]
        assert [] == server.requests

    def test_without_a_host_it_says_how_to_name_one(
        self, capsys: pytest.CaptureFixture[str], esteira_home: Path
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["submit", "tabular", "--json"])

        assert (2, "no_host") == (ended.value.code, json.loads(capsys.readouterr().out)["error"]["code"])

    def test_the_whole_command_reads_no_home_and_writes_none(self, server: KfpServer, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "esteira.cli", "submit", "tabular", "--source", SOURCE, "--target", "y", "--wait",
             "--every", "0.01"],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
            env={**os.environ, "HOME": str(tmp_path), "ESTEIRA_KFP_HOST": server.url, "ESTEIRA_KFP_TOKEN": TOKEN},
        )  # fmt: skip

        assert 0 == done.returncode, done.stderr
        assert ["run", "run"] == [line.split()[0] for line in done.stdout.splitlines() if line[0] != " "]
        assert ": released" in done.stdout
        assert "images are localhost/" in done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert [] == [path for path in tmp_path.iterdir() if path.name != ".cache"]


class TestServerSaysNo:
    """Each no of the server, the network or kfp is an error that says what to do; the token is never in it."""

    def test_a_wrong_token_is_refused(self, server: KfpServer) -> None:
        with pytest.raises(ConfigError) as caught:
            Kubeflow(server.url, "wr0ng")

        assert ("kfp_denied", server.url) == (caught.value.code, caught.value.where)
        assert "401" in caught.value.message
        assert "ESTEIRA_KFP_TOKEN" in caught.value.cure
        assert "wr0ng" not in str(caught.value)

    def test_no_token_is_refused(self, server: KfpServer) -> None:
        with pytest.raises(ConfigError, match="401"):
            Kubeflow(server.url)

    def test_a_login_page_is_no_server(self, server: KfpServer) -> None:
        server.login_page = True
        with pytest.raises(ConfigError, match="a login page"):
            Kubeflow(server.url, TOKEN)

    def test_a_host_where_nobody_listens_is_told_at_once(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            host = f"127.0.0.1:{free.getsockname()[1]}"
        began = time.monotonic()
        for address in (f"http://{host}", host, "http://no-such-host.invalid"):
            with pytest.raises(OutsideError) as caught:
                Kubeflow(address, TOKEN)

            assert ("kfp_unreachable", 2) == (caught.value.code, caught.value.exit_code)
            assert "port-forward" in caught.value.cure
        assert 10 > time.monotonic() - began

    @pytest.mark.parametrize(
        "host",
        ["ftp://kfp.example.org", "not a host", "http://", "https://ana:pw@kfp.example.org", "http://h/?x=1", "/x"],
    )
    def test_what_is_no_address_is_refused_and_asked_nothing(self, host: str) -> None:
        with pytest.raises(ConfigError) as caught:
            Kubeflow(host, TOKEN)

        assert "bad_host" == caught.value.code
        assert "pw" not in caught.value.message

    def test_a_server_that_stays_silent_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipelines.kubeflow._FIRST_SECONDS", 1)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            with pytest.raises(OutsideError, match="timed out"):
                Kubeflow(f"http://127.0.0.1:{silent.getsockname()[1]}")

    def test_a_request_that_is_never_answered_is_given_up(
        self, server: KfpServer, kubeflow: Kubeflow, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pipelines.kubeflow._SECONDS", 1)
        answered = threading.Event()
        monkeypatch.setattr(KfpServer, "answer", lambda *_: {"late": answered.wait(10)})
        with pytest.raises(OutsideError, match="timed out"):
            kubeflow.run(Uploaded("a", "b", "c", new=True), PLAN, experiment="x")
        answered.set()

    def test_a_pipeline_that_the_server_refuses_leaves_nothing_behind(
        self, server: KfpServer, kubeflow: Kubeflow, compiled: Compiled, tmp_path: Path
    ) -> None:
        spec, platform = yaml.safe_load_all(compiled.ir.read_text(encoding="utf-8"))
        spec["root"]["dag"]["tasks"]["train"]["colour"] = "red"
        broken = tmp_path / "broken.yaml"
        broken.write_text(yaml.safe_dump_all([spec, platform]), encoding="utf-8")

        with pytest.raises(Refused, match=r"answered 400: .*colour"):
            kubeflow.upload(Compiled("tabular", "esteira-x", "esteira-x-1", broken, broken), "says")
        assert ({}, {}) == (server.pipelines, server.versions)

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"seed": "seven"}, "requires type NUMBER_INTEGER"),
            ({"sections": {**PLAN.sections, "tidy": {}}}, "not required by pipeline: tidy"),
            ({"target": 5}, "input parameter target requires type STRING"),
        ],
    )
    def test_parameters_that_the_pipeline_does_not_take_are_refused(
        self, change: dict[str, Any], told: str, kubeflow: Kubeflow, compiled: Compiled, server: KfpServer
    ) -> None:
        uploaded = kubeflow.upload(compiled, "says")
        with pytest.raises(Refused, match=told):
            kubeflow.run(uploaded, PLAN.model_copy(update=change), experiment="x")

        assert {} == server.runs

    def test_a_version_that_is_gone_is_refused(self, kubeflow: Kubeflow, compiled: Compiled) -> None:
        uploaded = kubeflow.upload(compiled, "says")
        with pytest.raises(Refused, match=r"404: .*not found"):
            kubeflow.run(Uploaded(uploaded.pipeline_id, "gone", "x", new=False), PLAN, experiment="x")

    def test_two_who_upload_the_same_at_once_get_the_same_version(
        self, kubeflow: Kubeflow, compiled: Compiled, server: KfpServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = kubeflow.upload(compiled, "says")
        seen = iter([None])
        look = kubeflow._version
        monkeypatch.setattr(kubeflow, "_version", lambda *names: next(seen, look(*names)))

        second = kubeflow.upload(compiled, "says")

        assert (first.version_id, False) == (second.version_id, second.new)
        assert 1 == len(server.versions)

    def test_a_schedule_of_another_pipeline_is_left_alone(
        self, kubeflow: Kubeflow, compiled: Compiled, server: KfpServer, tmp_path: Path
    ) -> None:
        mine = kubeflow.upload(compiled, "says")
        kubeflow.schedule(mine, PLAN, cron="@daily", name="nightly", experiment="x")
        other = kubeflow.upload(Compiled("o", "esteira-other", "esteira-other-1", compiled.ir, compiled.native), "says")

        with pytest.raises(Refused, match="another pipeline's"):
            kubeflow.schedule(other, PLAN, cron="@daily", name="nightly", experiment="x")
        with pytest.raises(Refused, match="another pipeline's"):
            kubeflow.unschedule("esteira-other", "nightly")
        assert 1 == len(server.recurring_runs)

    def test_while_waiting_the_server_may_be_away_for_a_moment(
        self, kubeflow: Kubeflow, compiled: Compiled, server: KfpServer
    ) -> None:
        run = kubeflow.run(kubeflow.upload(compiled, "says"), PLAN, experiment="x")
        server.broken = 3

        outcome = kubeflow.wait(run.id, lambda *_: None, every=0.01)

        assert ("released", 0) == (outcome.status, outcome.exit_code)
        server.broken = 10**6
        with pytest.raises(OutsideError) as caught:
            kubeflow.wait(run.id, lambda *_: None, every=0.01, patience=0.05)
        assert "the run goes on" in caught.value.cure
        assert run.id in caught.value.cure

    @pytest.mark.parametrize(
        ("states", "failed", "code", "status"),
        [
            (("PENDING", "RUNNING", "SUCCEEDED"), "", 0, "released"),
            (("RUNNING", "FAILED"), "evaluate", 1, "failed"),
            (("RUNNING", "FAILED"), "validate", 1, "failed"),
            (("RUNNING", "FAILED"), "train", 2, "failed"),
            (("FAILED",), "", 2, "failed"),
            (("RUNNING", "CANCELING", "CANCELED"), "", 1, "canceled"),
        ],
    )
    def test_a_run_s_outcome_names_the_step_and_who_said_no(
        self,
        states: tuple[str, ...],
        failed: str,
        code: int,
        status: str,
        kubeflow: Kubeflow,
        compiled: Compiled,
        server: KfpServer,
    ) -> None:
        server.states, server.failed = states, failed
        run = kubeflow.run(kubeflow.upload(compiled, "says"), PLAN, experiment="x")

        outcome = kubeflow.wait(run.id, lambda *_: None, every=0.01)

        assert (code, status) == (outcome.exit_code, outcome.status)
        assert bool(failed) == (f"step {failed} failed" in outcome.message)

    def test_who_waits_hears_of_each_change_once_in_the_order_of_the_steps(
        self, kubeflow: Kubeflow, compiled: Compiled, server: KfpServer
    ) -> None:
        server.states = ("PENDING", "PENDING", "RUNNING", "SUCCEEDED")
        run = kubeflow.run(kubeflow.upload(compiled, "says"), PLAN, experiment="x")
        heard: list[tuple[str, str]] = []

        kubeflow.wait(run.id, lambda step, state: heard.append((step, state)), every=0.01)

        assert [(step, state) for state in ("PENDING", "RUNNING", "SUCCEEDED") for step in NAMES] == heard

    def test_users_with_namespaces_say_theirs(self, compiled: Compiled) -> None:
        with KfpServer(multi_user=True).serving() as server, Kubeflow(server.url, namespace="ana") as kubeflow:
            uploaded = kubeflow.upload(compiled, "says")
            kubeflow.run(uploaded, PLAN, experiment="x")
            kubeflow.schedule(uploaded, PLAN, cron="@daily", name="n", experiment="x")

            assert {"ana"} == {one["namespace"] for one in (*server.pipelines.values(), *server.experiments.values())}
        with KfpServer(multi_user=True).serving() as server, Kubeflow(server.url) as kubeflow:
            uploaded = kubeflow.upload(compiled, "says")
            with pytest.raises(Refused, match="Namespace is empty"):
                kubeflow.run(uploaded, PLAN, experiment="x")

    @pytest.mark.parametrize(
        ("status", "steps", "code"),
        [
            ("released", {}, 0),
            ("failed", {"validate": "FAILED", "train": "SKIPPED"}, 1),
            ("failed", {"validate": "FAILED", "train": "FAILED"}, 2),
            ("failed", {}, 2),
            ("canceled", {"train": "FAILED"}, 1),
        ],
    )
    def test_the_exit_code_says_who_said_no(self, status: str, steps: dict[str, str], code: int) -> None:
        assert code == Outcome(status, steps).exit_code


class TestSources:
    @pytest.mark.parametrize(
        "source",
        ["s3://bucket/rows.csv", "postgresql://ana@db:5432/rows#select 1", "mysql://db/rows", "/mnt/data/rows.csv",
         "file:///mnt/data/rows.csv", "sqlite:////mnt/data/rows.db#t", "s3://localhost/rows.csv"],
    )  # fmt: skip
    def test_what_pods_can_read_is_taken(self, source: str) -> None:
        check_source(source, [Volume(claim="c", path="/mnt/data")])

    @pytest.mark.parametrize(
        "source",
        ["rows.csv", "data/rows.csv", "./rows.csv", "/home/ana/rows.csv", "~/rows.csv", "file:///srv/rows.csv",
         "sqlite:///rows.db", "sqlite:////srv/rows.db#t", "postgresql://localhost/rows", "postgresql://ana@127.0.0.1:5432/x",
         "/mnt/database/rows.csv"],
    )  # fmt: skip
    def test_what_only_this_machine_has_is_refused_with_a_cure(self, source: str) -> None:
        with pytest.raises(ConfigError) as caught:
            check_source(source, [Volume(claim="c", path="/mnt/data")])

        assert "local_source" == caught.value.code
        assert "s3://bucket/key" in caught.value.cure
        check_source(source, allow_local=True)

    def test_a_password_is_refused_whatever_is_allowed(self) -> None:
        with pytest.raises(ConfigError) as caught:
            check_source("postgresql://ana:s3cret@db/rows", allow_local=True)

        assert "s3cret" not in str(caught.value)
        assert "secret" in caught.value.cure

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("30 3 * * *", "0 30 3 * * *"),
            (" 0  30 3 * * * ", "0 30 3 * * *"),
            ("@daily", "@daily"),
            ("@every 2h", "@every 2h"),
        ],
    )
    def test_schedules_have_seconds_first(self, given: str, kept: str) -> None:
        assert kept == cron_of(given)
        check_cron(kept)

    def test_a_run_s_parameters_say_everything(self) -> None:
        assert {"line", "source", "target", "seed", "champion", *NAMES} == set(parameters(PLAN))
        assert "@champion" == parameters(PLAN)["champion"]


def _ask(server: KfpServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """A request without kfp's client, which would not let some mistakes through."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    kind = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}", **headers}
    request = urllib.request.Request(f"{server.url}/apis/v2beta1/{path}", data, kind, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


class TestFake:
    """The fake refuses what the real server refuses; one test a refusal."""

    def _upload(self, server: KfpServer, change: Callable[[Any, Any], Any], compiled: Compiled) -> str:
        spec, platform = yaml.safe_load_all(compiled.ir.read_text(encoding="utf-8"))
        with pytest.raises(Refusal) as caught:
            read_ir("\n---\n".join(map(json.dumps, change(spec, platform) or [spec, platform])).encode())
        assert 400 == caught.value.status
        return caught.value.message

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda s, _: s.update(colour="red"), 'no field named "colour"'),
            (lambda s, _: s["root"]["dag"]["tasks"]["train"].update(colour="red"), 'no field named "colour"'),
            (lambda s, _: s["deploymentSpec"]["executors"]["exec-train"]["container"].update(gpu=1), "deployment spec"),
            (lambda _, p: p["platforms"]["kubernetes"].update(colour="red"), "platform specific configs"),
            (
                lambda _, p: p["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"].update(colour=1),
                "kubernetes config of exec-train",
            ),
            (lambda s, _: s.update(schemaVersion="2.0.0"), "only supports schema version 2.1.0"),
            (lambda s, _: s["pipelineInfo"].update(name=""), "name should consist"),
            (lambda s, _: s["pipelineInfo"].update(name="Esteira_1"), "name should consist"),
            (lambda s, _: s.pop("root"), "root component is empty"),
            (lambda s, _: s["components"].pop("comp-train"), "task train: component not found"),
            (lambda s, _: s["deploymentSpec"]["executors"].pop("exec-train"), "task train: executor not found"),
            (lambda s, p: [s, p, p], "multiple platform specs"),
            (lambda s, p: [s, s, p], "multiple pipeline specs"),
            (lambda _, p: [p], "no pipeline spec"),
            (lambda s, p: [s, p, {"colour": "red"}], "neither a pipeline spec nor"),
        ],
    )
    def test_an_ir_that_the_schema_does_not_know_is_refused(
        self, change: Any, told: str, server: KfpServer, compiled: Compiled
    ) -> None:
        said = self._upload(server, lambda s, p: found if isinstance(found := change(s, p), list) else None, compiled)

        assert told in said

    def test_a_file_that_is_no_yaml_is_refused(self) -> None:
        with pytest.raises(Refusal, match="unable to decode"):
            read_ir(b"a: [")

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"source": "s", "target": "t", "colour": 1}, "not required by pipeline: colour"),
            ({"target": "t"}, "parameter source is not optional"),
            ({"source": 1, "target": "t"}, "source requires type STRING"),
            ({"source": "s", "target": "t", "seed": "1"}, "seed requires type NUMBER_INTEGER"),
            ({"source": "s", "target": "t", "seed": True}, "seed requires type NUMBER_INTEGER"),
            ({"source": "s", "target": "t", "train": "{}"}, "train requires type STRUCT"),
        ],
    )
    def test_parameters_are_checked_by_the_pipeline(self, given: dict[str, Any], told: str, compiled: Compiled) -> None:
        spec = next(iter(yaml.safe_load_all(compiled.ir.read_text(encoding="utf-8"))))
        del spec["root"]["inputDefinitions"]["parameters"]["source"]["defaultValue"]
        with pytest.raises(Refusal, match=told):
            check_parameters(spec, given)

        check_parameters(spec, {"source": "s", "target": "t", "seed": 1, "train": {}})

    @pytest.mark.parametrize("text", ["", "* *", "0 0 0 0 * * *", "0 61 * * * *", "0 * 24 * * *", "0 0 0 32 * *",
                                      "0 0 0 1 13 *", "0 0 0 * * 7", "0 5-3 * * * *", "@often", "@every day", "0 a * * * *"])  # fmt: skip
    def test_a_bad_cron_is_refused(self, text: str) -> None:
        with pytest.raises(Refusal, match="not a supported format"):
            check_cron(text)

    @pytest.mark.parametrize(
        "text", ["0 30 3 * * *", "0 0 9 ? * 2-6", "0 */15 * * * MON-FRI", "@hourly", "0 0 1,15 * *"]
    )
    def test_a_good_cron_is_taken(self, text: str) -> None:
        check_cron(text)

    @pytest.mark.parametrize(
        ("method", "path", "body", "status", "told"),
        [
            ("POST", "pipelines", {"display_name": "x", "colour": "red"}, 400, 'unknown field "colour"'),
            ("POST", "pipelines", {"display_name": 5}, 400, "invalid value for str field display_name"),
            ("POST", "pipelines", {"display_name": ""}, 400, "name is empty"),
            ("POST", "pipelines", {"display_name": "x" * 129}, 400, "length cannot exceed 128"),
            ("POST", "pipelines", {"display_name": "x", "namespace": "ana"}, 400, "single-user mode"),
            ("POST", "pipelines", [], 400, "a JSON object is expected"),
            ("POST", "experiments", b"{", 400, ""),
            ("POST", "experiments", {"display_name": "x", "storage_state": "LOST"}, 400, "invalid value for enum"),
            ("POST", "runs", {"experiment_id": "gone"}, 404, "Experiment gone not found"),
            ("GET", "runs/gone", None, 404, "Run gone not found"),
            ("GET", "pipelines/gone", None, 404, "not found"),
            ("GET", "pipelines/gone/versions", None, 404, "not found"),
            ("DELETE", "recurringruns/gone", None, 404, "not found"),
            ("GET", "pipelines?colour=red", None, 400, "unknown query parameter: colour"),
            (
                "GET",
                "pipelines?filter=%7B%22predicates%22%3A%5B%7B%22key%22%3A1%7D%5D%7D",
                None,
                400,
                "unsupported filter",
            ),
            ("POST", "pipelines/upload_version?pipelineid=gone&name=x", {}, 400, "Error parsing"),
            ("GET", "colours", None, 404, "Not Found"),
        ],
    )
    def test_a_request_that_is_wrong_is_refused(
        self, method: str, path: str, body: Any, status: int, told: str, server: KfpServer
    ) -> None:
        got, document = _ask(server, method, path, body)

        assert status == got
        assert told in document["message"]

    def test_a_name_that_is_taken_is_refused(self, server: KfpServer) -> None:
        assert 200 == _ask(server, "POST", "experiments", {"display_name": "x"})[0]
        assert 409 == _ask(server, "POST", "experiments", {"display_name": "x"})[0]

    def test_a_pipeline_with_versions_is_not_deleted(
        self, server: KfpServer, kubeflow: Kubeflow, compiled: Compiled
    ) -> None:
        uploaded = kubeflow.upload(compiled, "says")

        assert 400 == _ask(server, "DELETE", f"pipelines/{uploaded.pipeline_id}")[0]

    def test_a_recurring_run_says_how_many_at_once(
        self, server: KfpServer, kubeflow: Kubeflow, compiled: Compiled
    ) -> None:
        uploaded = kubeflow.upload(compiled, "says")
        experiment = _ask(server, "POST", "experiments", {"display_name": "e"})[1]["experiment_id"]
        body = {
            "display_name": "n", "experiment_id": experiment, "max_concurrency": 11,
            "pipeline_version_reference": {
                "pipeline_id": uploaded.pipeline_id, "pipeline_version_id": uploaded.version_id
            },
        }  # fmt: skip

        status, told = _ask(server, "POST", "recurringruns", body)

        assert (400, True) == (status, "at least 1 and at most 10" in told["message"])

    def test_without_a_token_nothing_is_answered(self, server: KfpServer) -> None:
        assert 401 == _ask(server, "GET", "healthz", Authorization="Bearer other")[0]

    def test_lists_come_page_by_page(
        self, server: KfpServer, kubeflow: Kubeflow, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pipelines.kubeflow._PAGE", 2)
        kubeflow.schedule(kubeflow.upload(compiled, "says"), PLAN, cron="@daily", name="n", experiment="x")
        (one,) = server.recurring_runs.values()
        server.recurring_runs |= {str(number): {**one, "recurring_run_id": str(number)} for number in range(4)}

        assert 5 == kubeflow.unschedule("esteira-tabular", "n")
        assert {} == server.recurring_runs
