"""Runs the very pipeline that is submitted, here: kfp's local SubprocessRunner, with steps forked from preloaded processes.

Writes the run's record to the platform store and its products to `build/<line>/<run>`; a held gate or any failure ends the
run with the last good state untouched.
"""

import contextlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from esteira import locks
from esteira.settings import Settings
from pipelines.forkserver import ForkServer, Outcome
from pipelines.plan import Plan
from pipelines.shape import STEPS, Step

if TYPE_CHECKING:
    from esteira.store import Store

# Where kfp keeps outputs within a run's folder while it runs.
KFP = "kfp"
# What a long step says on its standard error as it goes, for people and for a progress bar alike: `trial 3/8 linear: 0.99`.
_PROGRESS = re.compile(r"(?P<noun>[a-z]+) (?P<done>\d+)/(?P<total>\d+) (?P<note>.*)")


@dataclass
class StepRecord:
    """How one step went. `status` is ran, reused or failed."""

    name: str
    status: str
    seconds: float
    why: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "status": self.status, "seconds": round(self.seconds, 3), "why": self.why}


@dataclass
class Result:
    """What a run came to; `error` is None unless the run was held or failed."""

    run_id: str
    line: str
    status: str
    folder: Path
    steps: list[StepRecord] = field(default_factory=list)
    version: int | None = None
    bundle_id: str | None = None
    bundle: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    gate: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        return 0 if self.error is None else int(self.error.get("exit", 2))

    def to_dict(self) -> dict[str, Any]:
        """The document of `esteira run --json` (COMMANDS)."""
        document = {
            "run_id": self.run_id,
            "line": self.line,
            "status": self.status,
            "version": self.version,
            "bundle_id": self.bundle_id,
            "bundle": self.bundle,
            "metrics": self.metrics,
            "baseline": self.baseline,
            "gate": self.gate,
            "steps": [step.to_dict() for step in self.steps],
        }
        if self.error is not None:
            document["error"] = {key: self.error[key] for key in ("code", "message", "where", "cure")}
        return document


class Display(Protocol):
    """What a run tells a person while it goes. `tick` comes about ten times a second."""

    def started(self, step: Step) -> None: ...
    def progress(self, step: Step, done: int, total: int, note: str) -> None: ...
    def tick(self) -> None: ...
    def ended(self, step: Step, record: StepRecord) -> None: ...


class _Steps:
    """Stands in for kfp's `run_local_subprocess`: forks each step, keeps its log, its time and its error."""

    def __init__(self, folder: Path, display: Display) -> None:
        self.folder = folder
        self.display = display
        self.record: Callable[[StepRecord], None] = lambda _: None
        self.error: dict[str, Any] | None = None
        self.records: list[StepRecord] = []
        self._servers: dict[str, ForkServer] = {}

    def start(self, group: str) -> None:
        """Start the preloaded process of a group, once."""
        if group not in self._servers:
            self._servers[group] = ForkServer(group, [server._socket.fileno() for server in self._servers.values()])

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()

    def __call__(self, full_command: list[str], env_vars: Mapping[str, str] | None = None) -> int:
        name = full_command[full_command.index("--function_to_execute") + 1]
        step = next(step for step in STEPS if step.name == name)
        script = next(i for i, part in enumerate(full_command) if "ephemeral_component.py" in part)
        job = {
            "step": name,
            "source": full_command[script + 1],
            "argv": full_command[script + 2 :],
            "env": dict(env_vars or {}),
            "tmp": str(self.folder / "tmp" / name),
        }
        self.start(step.imports)
        if name == "train":
            # Its imports are needed two steps from now, and would only be in the way before.
            self.start("registry")
        self.display.started(step)
        began = time.perf_counter()
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as stream:

            def on_line(text: str) -> None:
                stream.write(text + "\n")
                if found := _PROGRESS.fullmatch(text):
                    self.display.progress(step, int(found["done"]), int(found["total"]), found["note"])

            outcome = self._servers[step.imports].run(job, on_line=on_line, on_wait=self.display.tick)
        seconds = time.perf_counter() - began
        if outcome.code != 0:
            self.error = _error_of(step, outcome, log)
        record = StepRecord(name, "ran" if outcome.code == 0 else "failed", seconds, "every run runs every step")
        if self.error is not None:
            record.why = self.error["message"]
        self.records.append(record)
        self.record(record)
        self.display.ended(step, record)
        return outcome.code


def _error_of(step: Step, outcome: Outcome, log: Path) -> dict[str, Any]:
    error = outcome.error
    if error is None:
        name = signal.Signals(-outcome.code).name if outcome.code < 0 else f"exit status {outcome.code}"
        error = {
            "kind": "Killed",
            "exit": 2,
            "code": "step_killed",
            "message": f"step {step.name} must end by itself, but was ended by {name}",
            "where": "",
            "cure": "if the machine ran out of memory give it more or fewer rows; then run again: nothing was released",
        }
    where = "; ".join(part for part in (f"step {step.name}", error["where"], f"log {log}") if part)
    return {**error, "where": where}


def new_run_id() -> str:
    """A run's name: sortable by UTC time, unique."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def run(plan: Plan, settings: Settings, display: Display, *, build: Path = Path("build")) -> Result:
    """Run the whole DAG for one line.

    Args:
        plan: what to run; recorded, so that it can be run again.
        display: is told of every step.
        build: where products go; only `build/<line>/<run_id>` is written.

    Returns:
        The outcome; a held gate or a failed step is an outcome too, with `error` set.

    Raises:
        Refused: another run of this line is under way.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run is recorded as failed first.
    """
    # Threads of OpenMP that spin on shared cores made the same fit take a hundred times longer, at random.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    run_id = new_run_id()
    folder = build / plan.line / run_id
    with locks.hold(settings.home, f"run-{plan.line}", what=f"a run of {plan.line}"), _sigterm_as_interrupt():
        steps = _Steps(folder, display)
        # Great Expectations takes longest to import, so its process starts before anything else is imported here.
        steps.start("checks")
        steps.start("learn")
        from esteira.store import Store

        store = Store.open(settings.database_url, settings.tenant)
        steps.record = lambda record: store.record_step(run_id=run_id, **record.to_dict())
        store.reap()
        folder.mkdir(parents=True)
        result = Result(run_id=run_id, line=plan.line, status="running", folder=folder)
        store.start_run(
            run_id=run_id,
            line=plan.line,
            seed=plan.seed,
            source=plan.source,
            params=plan.model_dump(mode="json"),
        )
        try:
            champion = _champion(plan.line, settings)
            _run_pipeline(plan, run_id, champion, folder, steps)
            result.status = "released"
        except _StepFailed:
            result.error = steps.error
            result.status = "held" if result.error and result.error["kind"] == "GateHeld" else "failed"
        except KeyboardInterrupt:
            result.status = "failed"
            result.error = {
                "kind": "Interrupted",
                "exit": 1,
                "code": "interrupted",
                "message": f"run {run_id} was stopped before its end",
                "where": f"step {steps.records[-1].name}" if steps.records else "",
                "cure": "run again; what served before still serves",
            }
            raise
        finally:
            steps.stop()
            result.steps = steps.records
            _settle(folder)
            _gather(result)
            if result.status == "running":
                result.status = "failed"
            if result.status != "released":
                _record_unreleased(result, store, settings.actor)
            store.finish_run(
                run_id=run_id,
                status=result.status,
                metrics=result.metrics,
                bundle_id=result.bundle_id,
                version=result.version,
                error=result.error,
            )
            _write_json(folder / "run.json", {**result.to_dict(), "plan": plan.model_dump(mode="json")})
            shutil.rmtree(folder / "tmp", ignore_errors=True)
    return result


def _record_unreleased(result: Result, store: "Store", actor: str) -> None:
    """Record what a held or failed run found out: the step register does it for a released one, and was not reached."""
    from esteira import ledger
    from esteira.registry import datasets

    ingested, validated, trained = (output_of(result.folder, step) for step in ("ingest", "validate", "train"))
    if ingested is not None and (ingested / "dataset.json").exists():
        profile = None if validated is None else validated / "profile.json"
        datasets.record(store, ingested / "dataset.json", profile, actor=actor)
    if trained is not None and (trained / "leaderboard.json").exists():
        store.record_trials(result.run_id, json.loads((trained / "leaderboard.json").read_text(encoding="utf-8")))
    if result.status == "held":
        evidence = {"verdict": "held", "run_id": result.run_id, "rules": result.gate}
        ledger.append(
            store, kind="verdict", line=result.line, bundle_id=result.bundle_id, actor=actor, evidence=evidence
        )


class _StepFailed(Exception):
    """A task of the kfp pipeline failed; what it said is with the steps."""


def _champion(line: str, settings: Settings) -> str:
    """The folder of the line's present champion, verified; empty when there is none."""
    from esteira.registry import Registry

    registry = Registry(settings)
    version = registry.resolve(line)
    return "" if version is None else str(registry.fetch(version))


def _run_pipeline(plan: Plan, run_id: str, champion: str, folder: Path, steps: _Steps) -> None:
    with warnings.catch_warnings():
        # kfp warns about settings that have no effect locally (caching, display names); they are for the cluster.
        warnings.simplefilter("ignore")
        # kfp's package imports its API client, and with it all of kubernetes, unless told that it runs inside a task.
        os.environ["_KFP_RUNTIME"] = "true"
        import kfp  # noqa: F401 - for its side effect on what follows

        del os.environ["_KFP_RUNTIME"]
        from kfp import local as runner
        from kfp.local import subprocess_task_handler as handler

        from pipelines.dag import release

        runner.init(
            runner=runner.SubprocessRunner(use_venv=False), pipeline_root=str(folder / KFP), raise_on_error=True
        )
        original = handler.run_local_subprocess
        handler.run_local_subprocess = steps
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                release(
                    line=plan.line,
                    source=plan.source,
                    target=plan.target,
                    seed=plan.seed,
                    run_id=run_id,
                    champion=champion,
                    **plan.sections,
                )
        except RuntimeError as error:
            if steps.error is None:
                raise
            raise _StepFailed from error
        finally:
            handler.run_local_subprocess = original


def _gather(result: Result) -> None:
    """Read what the steps left; a step that did not run leaves nothing."""
    evaluated = output_of(result.folder, "evaluate")
    if evaluated is not None:
        gate = _read_json(evaluated / "gate.json")
        measured = _read_json(evaluated / "metrics.json")
        result.gate = gate.get("rules", [])
        result.metrics = measured.get("metrics", {})
        result.baseline = measured.get("baseline", {})
        manifest = evaluated / "bundle" / "manifest.sha256"
        if manifest.exists():
            result.bundle = str(evaluated / "bundle")
            result.bundle_id = manifest.read_text(encoding="utf-8").split()[0]
    registered = output_of(result.folder, "register")
    if registered is not None:
        result.version = _read_json(registered / "receipt.json").get("version")


def _settle(folder: Path) -> None:
    """Give each step's output its plain place, `<run>/<step>/`; kfp files it below a name with the time in it."""
    for out in (folder / KFP).glob("*/*/out"):
        out.rename(folder / out.parent.name)
    shutil.rmtree(folder / KFP, ignore_errors=True)


def output_of(folder: Path, step: str) -> Path | None:
    """The output folder of a step within the folder of a run that ended, or None."""
    return folder / step if (folder / step).is_dir() else None


def _read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return document


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """While it holds, SIGTERM ends a run as Ctrl-C does: recorded, with nothing left behind."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        former = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
