"""A step forked from a preloaded process is still a process of its own: it fails, dies and prints for itself alone."""

import errno
import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from esteira.errors import GateHeld
from pipelines import forkserver
from pipelines.forkserver import ForkServer, describe

FUNCTION = """
import os, signal, sys, time

def step(what: str):
    from esteira.errors import DataError, GateHeld
    print("pid", os.getpid(), flush=True)
    if what == "held":
        raise GateHeld("the gate said no", code="gate_held", where="rule x", cure="a better model")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        sys.exit(7)
    if what == "many":
        for number in range(20000):
            print("line", number)
    if what == "sleep":
        time.sleep(60)
    if what == "env":
        print(os.environ["ESTEIRA_TESTED"], os.environ["TMPDIR"])
"""


def _job(what: str, folder: Path) -> dict[str, Any]:
    executor_input = {
        "inputs": {"parameterValues": {"what": what}},
        "outputs": {"outputFile": str(folder / "output.json")},
    }
    return {
        "step": "tested",
        "source": FUNCTION,
        "argv": ["--executor_input", json.dumps(executor_input), "--function_to_execute", "step"],
        "env": {"ESTEIRA_TESTED": "yes"},
        "tmp": str(folder / "tmp"),
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(forkserver.PRELOAD, "bare", ("kfp.dsl.executor_main",))  # type: ignore[misc]
    started = ForkServer("bare")
    yield started
    started.stop()


def test_a_step_that_ends_well_has_code_zero_and_no_error(server: ForkServer, tmp_path: Path) -> None:
    lines: list[str] = []

    outcome = server.run(_job("many", tmp_path), on_line=lines.append)

    assert (0, None) == (outcome.code, outcome.error)
    assert [f"line {number}" for number in range(20000)] == [line for line in lines if line.startswith("line ")]


def test_a_step_gets_its_environment_and_a_temporary_folder_of_its_own(server: ForkServer, tmp_path: Path) -> None:
    lines: list[str] = []

    server.run(_job("env", tmp_path), on_line=lines.append)

    assert f"yes {tmp_path / 'tmp'}" in lines
    assert "ESTEIRA_TESTED" not in os.environ


def test_what_a_step_raises_reaches_the_runner_whole(server: ForkServer, tmp_path: Path) -> None:
    outcome = server.run(_job("held", tmp_path), on_line=lambda _: None)

    assert 1 == outcome.code
    assert {
        "kind": "GateHeld", "exit": 1, "code": "gate_held", "message": "the gate said no", "where": "rule x",
        "cure": "a better model",
    } == outcome.error  # fmt: skip


def test_a_killed_step_is_told_by_its_signal_and_the_next_step_runs(server: ForkServer, tmp_path: Path) -> None:
    killed = server.run(_job("killed", tmp_path), on_line=lambda _: None)
    after = server.run(_job("env", tmp_path), on_line=lambda _: None)

    assert (-signal.SIGKILL, None) == (killed.code, killed.error)
    assert 0 == after.code


def test_two_steps_are_two_processes(server: ForkServer, tmp_path: Path) -> None:
    lines: list[str] = []

    server.run(_job("env", tmp_path), on_line=lines.append)
    server.run(_job("env", tmp_path), on_line=lines.append)

    pids = {line for line in lines if line.startswith("pid ")}
    assert 2 == len(pids - {f"pid {os.getpid()}", f"pid {server.pid}"})


def test_nothing_outlives_a_runner_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        sys.path[:0] = {sys.path!r}
        from tests.test_forkserver import _job
        from pipelines import forkserver
        forkserver.PRELOAD = {{"bare": ("kfp.dsl.executor_main",)}}
        server = forkserver.ForkServer("bare")
        print("pid", server.pid, flush=True)
        server.run(_job("sleep", Path({str(tmp_path)!r})), on_line=lambda line: print(line, flush=True))
        """
    )
    runner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    pids: list[int] = []
    while len(pids) < 2:
        line = runner.stdout.readline()
        assert line, "the runner ended early"
        if line.startswith("pid "):
            pids.append(int(line.split()[1]))

    runner.kill()
    runner.wait()
    runner.stdout.close()

    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [] == [pid for pid in pids if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_full_disk_is_told_as_one_and_not_as_a_fault_of_ours() -> None:
    told = describe(OSError(errno.ENOSPC, "No space left on device", "x.parquet"))

    assert ("disk_full", 2, "x.parquet") == (told["code"], told["exit"], told["where"])


def test_the_exit_status_is_that_of_the_error() -> None:
    assert 1 == describe(GateHeld("no", code="gate_held"))["exit"]
    assert 2 == describe(ValueError("bug"))["exit"]


def test_the_function_of_kfp_that_is_replaced_has_the_shape_we_know() -> None:
    """The local runner calls one function of kfp's to start a step's process; ours stands in for it by its parameters."""
    from kfp.local import subprocess_task_handler as handler

    assert ["full_command", "env_vars"] == list(inspect.signature(handler.run_local_subprocess).parameters)
    called = inspect.getsource(handler.SubprocessTaskHandler.run)
    assert "run_local_subprocess(\n                full_command=full_command,\n                env_vars=" in called
