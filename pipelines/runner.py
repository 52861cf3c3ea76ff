"""Runs a DAG here: kfp's own local runner over the compiled pipeline, steps forked from preloaded processes or reused.

What can be reused is decided before kfp is imported; a DAG of which nothing has to run never imports it. Knows nothing of
models: what a DAG's steps are, what their code is and whether what they did still stands is told to it.
"""

import contextlib
import io
import json
import os
import platform
import re
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pipelines.code import changed, packages
from pipelines.forkserver import ForkServer, Outcome
from pipelines.reuse import Basis, Decision, Receipt, Receipts, decide, share, tree
from pipelines.shape import Step

# Where kfp keeps outputs within a run's folder while it runs.
KFP = "kfp"
# What a long step says on its standard error as it goes, for people and for a progress bar alike: `trial 3/8 linear: 0.99`.
_PROGRESS = re.compile(r"(?P<noun>[a-z]+) (?P<done>\d+)/(?P<total>\d+) (?P<note>.*)")
# Arguments that name a run or the state of the world; they are no content, so no receipt is keyed on them.
_NO_CONTENT = frozenset({"run_id", "champion"})


@dataclass
class StepRecord:
    """How one step went. `status` is ran, reused or failed."""

    name: str
    status: str
    seconds: float
    why: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "status": self.status, "seconds": round(self.seconds, 3), "why": self.why}


class Display(Protocol):
    """What a run tells a person while it goes. `tick` comes about ten times a second."""

    def started(self, step: Step) -> None: ...
    def progress(self, step: Step, done: int, total: int, note: str) -> None: ...
    def tick(self) -> None: ...
    def ended(self, step: Step, record: StepRecord) -> None: ...


class Silent:
    """A display that tells nothing."""

    def started(self, step: Step) -> None: ...
    def progress(self, step: Step, done: int, total: int, note: str) -> None: ...
    def tick(self) -> None: ...
    def ended(self, step: Step, record: StepRecord) -> None: ...


@dataclass(frozen=True)
class Dag:
    """A DAG as the runner sees it.

    Attributes:
        steps: in an order in which each comes after what it needs.
        pipeline: imports kfp and gives the pipeline function; its tasks are named as the steps, and what a step leaves is
            its output `out`.
        code: files of a step's code -> SHA-256; asked when a run begins and again when the step ended.
        data: what a step reads from outside -> hash of its content.
        stands: why a receipt does not stand any more although its basis is the same, e.g. because what it registered was
            removed; empty when it does.
        notes: what to keep beside a receipt, from the step's output.
        settings: variables that change what a step leaves, name -> value; addresses of state are none, and never secrets.
    """

    steps: Sequence[Step]
    pipeline: Callable[[], Callable[..., Any]]
    code: Callable[[Step], Mapping[str, str]]
    data: Callable[[Step], Mapping[str, str]] = lambda _: {}
    stands: Callable[[Step, Receipt], str] = lambda _, __: ""
    notes: Callable[[Step, Path], Mapping[str, str]] = lambda _, __: {}
    settings: Callable[[Step], Mapping[str, str]] = lambda _: {}


class StepFailed(Exception):
    """A step of the DAG failed. `error` is `{"kind", "code", "message", "where", "cure", "exit"}`."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error


class Run:
    """One run of a DAG into one folder. Use as a context manager: leaving it ends every process it started.

    Args:
        arguments: of the pipeline function; a step's own section stands under the step's name.
        folder: of the run, below the folder of its receipts; each step's output becomes `folder/<step>`.
        receipts: of what ran before.
        fresh: run every step, whatever the receipts say.
        keep: is given each step's record as soon as the step ended.
    """

    def __init__(
        self,
        dag: Dag,
        arguments: Mapping[str, Any],
        *,
        folder: Path,
        receipts: Receipts,
        display: Display | None = None,
        fresh: bool = False,
        keep: Callable[[StepRecord], None] = lambda _: None,
    ) -> None:
        self.dag, self.arguments, self.folder, self.receipts = dag, dict(arguments), folder, receipts
        self.display: Display = display or Silent()
        self.fresh = fresh
        self.keep = keep
        self.error: dict[str, Any] | None = None
        self.records: list[StepRecord] = []
        self._digests: dict[str, str] = {}
        self._decided: dict[str, tuple[Basis, Decision]] = {}
        self._packages = packages()
        # Before any process imports a module: what is edited after this is another step's code.
        self._code = {step.name: self.dag.code(step) for step in self.dag.steps}
        self._servers: dict[str, ForkServer] = {}

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.stop()

    def decision(self, step: Step) -> Decision:
        """Whether a step whose inputs are known must run; decided once."""
        if step.name not in self._decided:
            basis = Basis(
                params=self.arguments.get(step.name) or {},
                arguments={
                    **{name: _content(self.arguments[name]) for name in step.takes if name not in _NO_CONTENT},
                    **self.dag.settings(step),
                    # Sums differ in their last digits from one processor to another, and a folder may be carried there.
                    "machine": f"{platform.system()} {platform.machine()}",
                },
                data=self.dag.data(step),
                inputs={needed: self._digests[needed] for needed in sorted(set(step.needs.values()))},
                code=self._code[step.name],
                packages=self._packages,
            )
            decided = (
                Decision(None, "asked to run every step afresh")
                if self.fresh
                else decide(step.name, basis, self.receipts, stands=lambda receipt: self.dag.stands(step, receipt))
            )
            self._decided[step.name] = basis, decided
        return self._decided[step.name][1]

    def warm(self, step: Step) -> None:
        """Start the preloaded processes that this step and the two after it need."""
        at = [other.name for other in self.dag.steps].index(step.name)
        for near in self.dag.steps[at : at + 3]:
            if near.imports not in self._servers:
                others = [server._socket.fileno() for server in self._servers.values()]
                self._servers[near.imports] = ForkServer(near.imports, others)

    def go(self) -> list[StepRecord]:
        """Reuse what can be, run the rest.

        Returns:
            One record a step, in order.

        Raises:
            StepFailed: a step failed; `records` ends with it, and what was reached lies in the folder.
        """
        try:
            for step in self.dag.steps:
                if self.decision(step).receipt is None:
                    self._through_kfp(step)
                    break
                self._reuse(step)
        finally:
            # What a failed step left, e.g. the verdict of a held gate.
            for out in (self.folder / KFP).glob("*/*/out"):
                if not (self.folder / out.parent.name).exists():
                    out.rename(self.folder / out.parent.name)
            shutil.rmtree(self.folder / KFP, ignore_errors=True)
            shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        return self.records

    def _reuse(self, step: Step) -> None:
        began = time.perf_counter()
        decided = self.decision(step)
        assert decided.receipt is not None
        place = self.folder / step.name
        share(self.receipts.folder / decided.receipt.folder, place)
        # Its own receipt: the next run is compared with this one, and needs the folder of the one that ran it no more.
        self.receipts.put(replace(decided.receipt, folder=place.relative_to(self.receipts.folder).as_posix()))
        self._digests[step.name] = decided.receipt.digest
        self.record(step, StepRecord(step.name, "reused", time.perf_counter() - began, decided.why))

    def record(self, step: Step, record: StepRecord) -> None:
        """Keep and show how a step went."""
        self.records.append(record)
        self.keep(record)
        self.display.ended(step, record)

    def took(self) -> dict[str, float]:
        """Step -> seconds that it took; of a reused one, in the run that executed it."""
        taken = {}
        for record in self.records:
            receipt = self._decided[record.name][1].receipt if record.status == "reused" else None
            taken[record.name] = record.seconds if receipt is None else receipt.seconds
        return taken

    def _through_kfp(self, first: Step) -> None:
        self.warm(first)
        with warnings.catch_warnings():
            # kfp warns about settings that have no effect locally (caching, display names); they are for the cluster.
            warnings.simplefilter("ignore")
            # kfp's package imports its API client, and with it all of kubernetes, unless told that it runs inside a task.
            os.environ["_KFP_RUNTIME"] = "true"
            import kfp  # noqa: F401 - for its side effect on what follows

            del os.environ["_KFP_RUNTIME"]
            from kfp import local as runner
            from kfp.local import subprocess_task_handler as handler

            pipeline = self.dag.pipeline()
            runner.init(
                runner=runner.SubprocessRunner(use_venv=False),
                pipeline_root=str(self.folder / KFP),
                raise_on_error=True,
            )
            original = handler.run_local_subprocess
            handler.run_local_subprocess = self._task
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    pipeline(**self.arguments)
            except RuntimeError as error:
                if self.error is None:
                    raise
                raise StepFailed(self.error) from error
            finally:
                handler.run_local_subprocess = original

    def _task(self, full_command: list[str], env_vars: Mapping[str, str] | None = None) -> int:
        """Stands in for kfp's `run_local_subprocess`: gives kfp a reused output, or forks the step."""
        name = full_command[full_command.index("--function_to_execute") + 1]
        step = next(step for step in self.dag.steps if step.name == name)
        given = json.loads(full_command[full_command.index("--executor_input") + 1])
        artefacts = given["outputs"]["artifacts"]
        out = Path(artefacts["out"]["artifacts"][0]["uri"])
        if name not in self._digests and self.decision(step).receipt is not None:
            self._reuse(step)
        if name in self._digests:
            share(self.folder / name, out)
            told = Path(given["outputs"]["outputFile"])
            told.parent.mkdir(parents=True, exist_ok=True)
            told.write_text(json.dumps({"artifacts": artefacts}), encoding="utf-8")
            return 0
        return self._fork(step, full_command, dict(env_vars or {}), out)

    def _fork(self, step: Step, full_command: list[str], env: dict[str, str], out: Path) -> int:
        from esteira.settings import redact

        script = next(i for i, part in enumerate(full_command) if "ephemeral_component.py" in part)
        job = {
            "step": step.name,
            "source": full_command[script + 1],
            "argv": full_command[script + 2 :],
            "env": env,
            "tmp": str(self.folder / "tmp" / step.name),
        }
        self.warm(step)
        self.display.started(step)
        began = time.perf_counter()
        log = self.folder / "logs" / f"{step.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as stream:

            def on_line(text: str) -> None:
                # kfp logs what a step was given, and an address may hold a password.
                stream.write(redact(text) + "\n")
                if found := _PROGRESS.fullmatch(text):
                    self.display.progress(step, int(found["done"]), int(found["total"]), found["note"])

            outcome = self._servers[step.imports].run(job, on_line=on_line, on_wait=self.display.tick)
        seconds = time.perf_counter() - began
        if outcome.code != 0:
            self.error = _error_of(step, outcome, log)
            self.record(step, StepRecord(step.name, "failed", seconds, self.error["message"]))
            return outcome.code
        self._keep(step, out, seconds)
        return 0

    def _keep(self, step: Step, out: Path, seconds: float) -> None:
        """Give a step's output its place and its receipt; at once, so that a run that is killed later leaves it for reuse."""
        basis, decided = self._decided[step.name]
        place = self.folder / step.name
        share(out, place)
        receipt = Receipt(
            step=step.name,
            run_id=self.folder.name,
            folder=place.relative_to(self.receipts.folder).as_posix(),
            basis=basis,
            outputs=tree(place),
            seconds=round(seconds, 3),
            notes=self.dag.notes(step, place),
            moved=self._moved(basis, step),
        )
        self.receipts.put(receipt)
        self._digests[step.name] = receipt.digest
        why = f"{decided.why}; not kept for reuse, because {receipt.moved} meanwhile" if receipt.moved else decided.why
        self.record(step, StepRecord(step.name, "ran", seconds, why))

    def _moved(self, basis: Basis, step: Step) -> str:
        """What of a step's code and packages somebody changed since the run began."""
        now = [*changed(basis.code, self.dag.code(step)), *changed(basis.packages, packages())]
        return f"{now[0][0]} was {now[0][1]}" if now else ""


def run_dag(
    dag: Dag, arguments: Mapping[str, Any], *, folder: Path, receipts: Receipts, fresh: bool = False
) -> list[StepRecord]:
    """Run a DAG once, silently; see Run for what the arguments are and what is raised."""
    folder.mkdir(parents=True)
    with Run(dag, arguments, folder=folder, receipts=receipts, fresh=fresh) as run:
        return run.go()


def _content(value: Any) -> Any:
    """An argument without the passwords of addresses: they open a source and are none of what it holds."""
    if not isinstance(value, str) or "://" not in value:
        return value
    # Imported where an address is: it takes longer than all that a run of which nothing changed does.
    from esteira.settings import redact

    return redact(value)


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
