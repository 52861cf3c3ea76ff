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
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from esteira import locks
from esteira.errors import EsteiraError, Refused
from esteira.family import Line
from esteira.settings import Settings
from pipelines import parity
from pipelines.code import ROOT, files_of, hashes
from pipelines.plan import Plan
from pipelines.reuse import Receipt, Receipts
from pipelines.runner import Dag, Display, Run, StepFailed, StepRecord
from pipelines.shape import STEPS, Step

if TYPE_CHECKING:
    from esteira.registry import Registry, Version
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
        Refused: another run of this line is under way, the champion was tampered with, or a repeat's data changed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run is recorded as failed first.
    """
    # Threads of OpenMP that spin on shared cores made the same fit take a hundred times longer, at random.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    run_id = new_run_id()
    folder = build / plan.line / run_id
    with locks.hold(settings.home, f"run-{plan.line}", what=f"a run of {plan.line}"), _sigterm_as_interrupt():
        world = _World(plan, settings, Receipts(build / plan.line))
        plan = world.with_data_hash()
        arguments = {
            "line": plan.line, "source": plan.source, "target": plan.target, "seed": plan.seed, "run_id": run_id,
            **plan.sections,
        }  # fmt: skip
        dag = Dag(
            STEPS, world.pipeline, lambda step: code_of(step, world.family), world.data, world.stands, world.notes
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
                result.status = "released"
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
            finally:
                result.steps = steps.records
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
                took = {record.name: record.seconds for record in result.steps if record.status != "reused"}
                result.parity = parity.write(
                    folder, run_id=run_id, line=plan.line, settings=settings, reuses=not fresh, seconds=took,
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
        steps.records[-1].why = failed.error["message"]
        raise StepFailed(failed.error) from failed


def code_of(step: Step, family: str) -> dict[str, str]:
    """File -> SHA-256 of a step's code: its module, all that it imports, its body in the pipeline, what it reads of the family."""
    modules, patterns = [f"components.{step.name}"], list(step.files)
    folder = f"families/{family}"
    for pattern in step.family:
        if pattern.endswith(".py"):
            # sample.py is the command that writes the golden sample, and no part of a model.
            stems = [path.stem for path in (ROOT / folder).glob(pattern) if path.stem != "sample"]
            modules += [f"families.{family}.{stem}" for stem in stems]
        else:
            patterns.append(f"{folder}/{pattern}")
    return hashes(files_of(modules), patterns=patterns, functions=[f"pipelines/ops.py::{step.name}"])


class _World:
    """What the release DAG of one line reads of its surroundings: code, data, and what registry and store say now."""

    def __init__(self, plan: Plan, settings: Settings, receipts: Receipts) -> None:
        self.plan, self.settings, self.receipts = plan, settings, receipts
        self.family = Line.parse(plan.line).family

    @cached_property
    def store(self) -> "Store":
        from esteira.store import Store

        return Store.open(self.settings.database_url, self.settings.tenant)

    @cached_property
    def registry(self) -> "Registry":
        from esteira.registry import Registry

        return Registry(self.settings)

    @cached_property
    def champion(self) -> "Version | None":
        return self.registry.resolve(self.plan.line)

    @cached_property
    def champion_folder(self) -> str:
        """The folder of the line's present champion, verified; empty when there is none."""
        return "" if self.champion is None else str(self.registry.fetch(self.champion))

    @cached_property
    def content(self) -> str:
        """Hash of what the source holds now; empty where it cannot be read, which the step ingest will say better."""
        from esteira import sources

        limits = {"query", "max_rows", "max_bytes"}
        section = self.plan.sections.get("ingest", {})
        try:
            return sources.fingerprint(self.plan.source, **{key: section[key] for key in limits & set(section)})
        except EsteiraError:
            return ""

    def with_data_hash(self) -> Plan:
        """The plan with the hash of its data.

        Raises:
            Refused: it is a repeat, and the data are other ones.
        """
        if self.plan.data_hash and self.content and self.plan.data_hash != self.content:
            raise Refused(
                f"a repeated run reads the bytes that it read first, {self.plan.data_hash[:12]}, but now they are"
                f" {self.content[:12]}",
                code="data_changed",
                where=f"{self.plan.line}, {self.plan.source}",
                cure="bring back the file as it was, or run without --from to learn from what is there now",
            )
        return self.plan.model_copy(update={"data_hash": self.content})

    def pipeline(self) -> Any:
        from pipelines.dag import release

        return release

    def data(self, step: Step) -> dict[str, str]:
        return {self.plan.source: self.content} if "source" in step.takes else {}

    def notes(self, step: Step, place: Path) -> dict[str, str]:
        """What tells later whether a receipt still stands: the champion it was made against, and what it made."""
        against = {"champion": "" if self.champion is None else self.champion.bundle_id}
        if step.name == "validate":
            return {**against, "contract": _hash(place / "contract.yaml")}
        if step.name == "evaluate":
            contract = _hash(place.parent / "validate" / "contract.yaml")
            return {**against, "contract": contract, "bundle": _read_json(place / "gate.json").get("bundle_id", "")}
        if step.name == "register":
            told = _read_json(place / "receipt.json")
            return {"bundle": told["bundle_id"], "version": str(told["version"])}
        if step.name == "deploy":
            told = _read_json(place / "deployment.json")
            return {"version": str(told["version"]), "alias": told["alias"]}
        return {}

    def stands(self, step: Step, receipt: Receipt) -> str:
        """Why what a step did is not what it would do now, although all that it reads is the same."""
        now = "" if self.champion is None else self.champion.bundle_id
        notes = receipt.notes
        if step.name == "validate" and now != notes["champion"] and self._contract_of(now) != notes["contract"]:
            # The champion's contract is enforced; without one it is inferred, and the very same one changes nothing.
            return f"the champion's contract is another one: {_short(now)} instead of {_short(notes['champion'])}"
        if step.name == "evaluate" and now not in {notes["champion"], notes["bundle"]}:
            return f"it compares with the champion, which changed from {_short(notes['champion'])} to {_short(now)}"
        if step.name == "register":
            version = self.store.get_version(self.plan.line, int(notes["version"]))
            if version is None or version.bundle_id != notes["bundle"]:
                return f"version {notes['version']} is not in the registry any more"
        if step.name == "deploy":
            serving = self.registry.resolve(self.plan.line, notes["alias"])
            if serving is None or str(serving.version) != notes["version"]:
                at = "nothing" if serving is None else f"version {serving.version}"
                return f"alias {notes['alias']} points at {at}, not at version {notes['version']}"
        return ""

    def _contract_of(self, bundle_id: str) -> str:
        """Hash of the contract that a bundle made here was made under; empty where no receipt knows it."""
        if not bundle_id:
            return ""
        made = (receipt.notes for receipt in self.receipts.all("evaluate"))
        return next((notes["contract"] for notes in made if notes.get("bundle") == bundle_id), "")


def _short(bundle_id: str) -> str:
    return bundle_id[:12] or "none"


def _hash(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


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
