"""Runs the very pipeline that is submitted, here, for one model line; reuses what it can and records all of it.

Writes the run's record to the platform store and its products to `build/<line>/<run>`; a held gate or any failure ends the
run with the last good state untouched.
"""

import contextlib
import json
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from esteira import access, locks
from esteira.errors import OutsideError
from esteira.settings import Settings, redact
from pipelines import parity
from pipelines.forkserver import describe
from pipelines.plan import Plan
from pipelines.reuse import Receipts
from pipelines.runner import Dag, Display, Run, StepFailed, StepRecord
from pipelines.shape import NAMES, STEPS
from pipelines.world import World, code_of, read_json

if TYPE_CHECKING:
    from esteira.store import Store

Runner = Literal["process", "docker"]


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
    parity: dict[str, Any] = field(default_factory=dict)

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


def new_run_id() -> str:
    """A run's name: sortable by UTC time, unique."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def run(
    plan: Plan,
    settings: Settings,
    display: Display,
    *,
    build: Path = Path("build"),
    fresh: bool = False,
    runner: Runner = "process",
) -> Result:
    """Run the whole DAG for one line; a step of which nothing changed is reused.

    Args:
        plan: what to run; recorded, so that it can be run again. With a `data_hash` it is a repeat, and other bytes under
            the same source are refused.
        display: is told of every step.
        build: where products go; only `build/<line>` is written.
        fresh: run every step, whatever is known of it.
        runner: `docker` runs each step in its container, as a cluster does; nothing is reused then, because receipts tell
            of the code that is here and not of the one in an image.

    Returns:
        The outcome; a held gate or a failed step is an outcome too, with `error` set.

    Raises:
        Refused: another run of this line is under way, the champion was tampered with, a repeat's data changed, or ESTEIRA_KEY
            opens nothing.
        SourceError: a repeat's data cannot be read.
        OutsideError: the disk is full; the run is recorded as failed first.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run is recorded as failed first.
    """
    # Threads of OpenMP that spin on shared cores made the same fit take a hundred times longer, at random.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    actor = access.who(settings)
    run_id = new_run_id()
    folder = build / plan.line / run_id
    with (
        locks.hold(settings.home, f"run-{plan.line}", what=f"a run of {plan.line}"),
        _sigterm_as_interrupt(),
        _full_disk(),
    ):
        world = World(plan, settings, Receipts(build / plan.line))
        plan = world.with_data_hash()
        arguments = {
            "line": plan.line, "source": plan.source, "target": plan.target, "seed": plan.seed, "run_id": run_id,
            **plan.sections,
        }  # fmt: skip
        dag = Dag(
            STEPS, world.pipeline, lambda step: code_of(step, world.family), world.data, world.stands, world.notes,
            world.settings_of,
        )  # fmt: skip
        with Run(dag, arguments, folder=folder, receipts=world.receipts, display=display, fresh=fresh) as steps:
            if runner == "process" and steps.decision(STEPS[0]).receipt is None:
                # Its processes import while the store is opened here.
                steps.warm(STEPS[0])
            store = world.store
            steps.keep = lambda record: store.record_step(run_id=run_id, **record.to_dict())
            store.reap()
            steps.arguments["champion"] = world.champion_folder
            folder.mkdir(parents=True)
            result = Result(run_id=run_id, line=plan.line, status="running", folder=folder)
            images: dict[str, str] | None = None
            store.start_run(
                run_id=run_id, line=plan.line, seed=plan.seed, source=plan.source, params=plan.model_dump(mode="json")
            )
            try:
                if runner == "docker":
                    images = {}
                    _in_containers(plan, settings, run_id, folder, world.champion_folder, steps, images)
                else:
                    steps.go()
                result.status = str(read_json(folder / "deploy" / "deployment.json").get("status", "released"))
            except StepFailed as failed:
                result.error = failed.error
                result.status = "held" if failed.error["kind"] == "GateHeld" else "failed"
            except KeyboardInterrupt:
                result.status = "failed"
                result.error = {
                    "kind": "Interrupted",
                    "exit": 1,
                    "code": "interrupted",
                    "message": f"run {run_id} was stopped before its end",
                    "where": f"step {steps.records[-1].name}" if steps.records else "",
                    "cure": "run again; what served before still serves, and finished steps are reused",
                }
                raise
            except Exception as error:
                # Not a step's but the runner's own, such as a full disk where outputs are shared.
                result.error = describe(error)
                raise
            finally:
                result.steps = steps.records
                _gather(result)
                if result.status == "running":
                    result.status = "failed"
                if result.status == "awaiting_approval" and world.serves(result.version):
                    # A step of another run asked, and somebody has approved and promoted since.
                    result.status = "released"
                if result.status not in {"released", "awaiting_approval"}:
                    _record_unreleased(result, store, actor)
                elif result.steps[NAMES.index("register")].status == "reused":
                    _record_trials(result, store)
                store.finish_run(
                    run_id=run_id,
                    status=result.status,
                    metrics=result.metrics,
                    bundle_id=result.bundle_id,
                    version=result.version,
                    error=result.error,
                )
                _write_json(folder / "run.json", {**result.to_dict(), "plan": _public(plan)})
                result.parity = parity.write(
                    folder, run_id=run_id, line=plan.line, settings=settings, reuses=not fresh, seconds=steps.took(),
                    images=images,
                )  # fmt: skip
    return result


def _in_containers(
    plan: Plan, settings: Settings, run_id: str, folder: Path, champion: str, steps: Run, images: dict[str, str]
) -> None:
    """Run every step in its container, and record each as the runner of processes does; `images` gets each step's image.

    Raises:
        StepFailed: a step failed.
    """
    from pipelines.containers import ContainerFailed, Ended, run_in_containers

    def ended(told: Ended) -> None:
        images[told.step] = told.image
        status = "ran" if told.code == 0 else "failed"
        steps.record(by_name[told.step], StepRecord(told.step, status, told.seconds, f"in a container of {told.image}"))

    by_name = {step.name: step for step in STEPS}
    try:
        run_in_containers(plan, settings, run_id=run_id, folder=folder, champion=champion, on_end=ended)
    except ContainerFailed as failed:
        if steps.records:
            steps.records[-1].why = failed.error["message"]
            steps.keep(steps.records[-1])
        raise StepFailed(failed.error) from failed


def _public(plan: Plan) -> dict[str, Any]:
    """The plan as a file may hold it: without passwords of addresses."""
    return {**plan.model_dump(mode="json"), "source": redact(plan.source)}


def _record_trials(result: Result, store: "Store") -> None:
    """Record the search behind the run's model: the step register does it, and did it for an earlier run only."""
    trained = output_of(result.folder, "train")
    if trained is not None and (trained / "leaderboard.json").exists():
        store.record_trials(result.run_id, json.loads((trained / "leaderboard.json").read_text(encoding="utf-8")))


def _record_unreleased(result: Result, store: "Store", actor: access.Actor) -> None:
    """Record what a held or failed run found out: the step register does it for a released one, and was not reached."""
    from esteira import ledger
    from esteira.registry import datasets

    ingested, validated = (output_of(result.folder, step) for step in ("ingest", "validate"))
    if ingested is not None and (ingested / "dataset.json").exists():
        profile = None if validated is None else validated / "profile.json"
        datasets.record(store, ingested / "dataset.json", profile, actor=actor.name)
    _record_trials(result, store)
    # What was registered has its verdict, and its rehearsal, in the ledger already.
    if result.status == "held" and result.version is None:
        evidence = {"verdict": "held", "run_id": result.run_id, "rules": result.gate, **actor.told()}
        ledger.append(
            store, kind="verdict", line=result.line, bundle_id=result.bundle_id, actor=actor.name, evidence=evidence
        )


def _gather(result: Result) -> None:
    """Read what the steps left; a step that did not run leaves nothing."""
    evaluated = output_of(result.folder, "evaluate")
    if evaluated is not None:
        gate = read_json(evaluated / "gate.json")
        measured = read_json(evaluated / "metrics.json")
        result.gate = gate.get("rules", [])
        result.metrics = measured.get("metrics", {})
        result.baseline = measured.get("baseline", {})
        manifest = evaluated / "bundle" / "manifest.sha256"
        if manifest.exists():
            result.bundle = str(evaluated / "bundle")
            result.bundle_id = manifest.read_text(encoding="utf-8").split()[0]
    registered = output_of(result.folder, "register")
    if registered is not None:
        result.version = read_json(registered / "receipt.json").get("version")


def output_of(folder: Path, step: str) -> Path | None:
    """The output folder of a step within the folder of a run that ended, or None."""
    return folder / step if (folder / step).is_dir() else None


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    """Tell of a full disk as a step does."""
    try:
        yield
    except OSError as error:
        told = describe(error)
        if told["code"] != "disk_full":
            raise
        raise OutsideError(told["message"], code=told["code"], where=told["where"], cure=told["cure"]) from error


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
