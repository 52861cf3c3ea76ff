"""Runs the steps of the kfp pipeline each in its own container, through kfp's DockerRunner. Records nothing: its caller does.

kfp 2.17 asks the engine to remove a container as soon as it ends, and takes one that is gone before its exit code was read for
a success (kubeflow/pipelines#13332). While `Containers` is entered, our `run_container` stands in for kfp's: it keeps the
container until its exit code is known. Steps never run as root and cannot write outside their outputs, /tmp and $ESTEIRA_HOME.
"""

import contextlib
import io
import os
import re
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from esteira.errors import ConfigError, OutsideError
from esteira.settings import Settings
from pipelines.shape import STEPS

if TYPE_CHECKING:
    import docker

    from pipelines.plan import Plan

# USER of the Dockerfile.
IMAGE_USER = 10001
KILLED = 137
# Of the process that runs the pipeline, what a step needs to reach its stores; paths of this machine mean nothing there.
_PASSED_ON = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "OMP_WAIT_POLICY",
)  # fmt: skip
# Steps that act in somebody's name; the others have no use for who that is.
_ACT = frozenset(step.name for step in STEPS if step.imports == "registry")
_LETTER = re.compile(r"^esteira\.errors\.(?P<kind>\w+): (?P<message>.*?)(?: \((?P<where>[^()]*)\))?$", re.MULTILINE)
_CURE = re.compile(r"^  cure: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Ended:
    """How the container of one step ended.

    Attributes:
        code: exit status; 137 where it was killed.
        out_of_memory: the kernel killed it at its memory limit.
        log: what it printed, standard output and error together.
    """

    step: str
    image: str
    code: int
    out_of_memory: bool
    seconds: float
    log: Path


class ContainerFailed(Exception):
    """A step's container failed. `error` is `{"kind", "code", "message", "where", "cure", "exit"}`."""

    def __init__(self, error: dict[str, Any], ended: Ended) -> None:
        super().__init__(error["message"])
        self.error = error
        self.ended = ended


class Containers:
    """While entered, pipelines and components of kfp run their steps in containers.

    Args:
        folder: of the run; kfp's pipeline root and the logs lie in it. Made if it is not there.
        settings: what the steps are told of stores, tenant and actor.
        reads: files and folders that steps may read, at their own paths.
        limits: arguments of the engine for each container, such as `{"mem_limit": "2g"}`.
        on_start: told of a step's name before its container starts.
        on_line: given each line that a step prints.
        on_end: told how each container ended.

    Raises:
        OutsideError: no container engine answers.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        reads: Sequence[Path] = (),
        limits: Mapping[str, Any] | None = None,
        on_start: Callable[[str], None] = lambda _: None,
        on_line: Callable[[str, str], None] = lambda *_: None,
        on_end: Callable[[Ended], None] = lambda _: None,
    ) -> None:
        self.folder, self.settings = folder.resolve(), settings
        self.reads, self.limits = [path.absolute() for path in reads], dict(limits or {})
        self.on_start, self.on_line, self.on_end = on_start, on_line, on_end
        self.ended: list[Ended] = []
        self._undo = contextlib.ExitStack()

    @property
    def root(self) -> Path:
        """Where kfp keeps what steps leave."""
        return self.folder / "kfp"

    def __enter__(self) -> "Containers":
        reach_engine()
        with warnings.catch_warnings():
            # kfp's settings for a cluster warn that they have no effect here.
            warnings.simplefilter("ignore")
            from kfp import local
            from kfp.local import docker_task_handler as handler
        with contextlib.ExitStack() as undo:
            user = self._user()
            runner = local.DockerRunner(
                network_mode="host",
                read_only=True,
                tmpfs={"/tmp": "mode=1777"},
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                working_dir=str(Path.cwd()),
                environment=self._environment(),
                **({"user": user} if user else {}),
                **self.limits,
            )
            # Given, so that kfp does not leave one behind in the temporary folder for each run.
            workspace = undo.enter_context(
                tempfile.TemporaryDirectory(prefix="esteira-kfp-", ignore_cleanup_errors=True)
            )
            local.init(runner=runner, pipeline_root=str(self.root), workspace_root=workspace, raise_on_error=True)
            original = handler.run_docker_container
            undo.callback(setattr, handler, "run_docker_container", original)
            handler.run_docker_container = self.run_container
            undo.callback(setattr, local.config.LocalExecutionConfig, "instance", None)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def run_container(
        self, client: "docker.DockerClient", image: str, command: list[str], volumes: dict[str, Any], **arguments: Any
    ) -> int:
        """Stands in for kfp's `run_docker_container`: the container is removed only when its exit code is known.

        Raises:
            ConfigError: the image is not there.
            OutsideError: the engine lost the container, or cannot start it. Never taken for a success.
        """
        import docker

        step = command[command.index("--function_to_execute") + 1]
        log = self.folder / "logs" / f"{step}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.on_start(step)
        began = time.perf_counter()
        if step in _ACT and self.settings.key is not None:
            # By the engine's socket: no command line has it, nor kfp's own settings, which it may print.
            key = {"ESTEIRA_KEY": self.settings.key.get_secret_value()}
            arguments["environment"] = {**arguments.get("environment", {}), **key}
        try:
            container = client.containers.create(
                image=image, command=command, volumes={**self._volumes(), **volumes}, **arguments
            )
        except docker.errors.ImageNotFound as error:
            raise ConfigError(
                f"a step runs in an image that is here, but {image} is not",
                code="no_image", where=f"step {step}", cure="build it: make images",
            ) from error  # fmt: skip
        except docker.errors.APIError as error:
            raise _lost(step, error) from error
        try:
            container.start()
            with log.open("w", encoding="utf-8") as stream:
                for line in _lines(container.logs(stream=True)):
                    stream.write(line + "\n")
                    self.on_line(step, line)
            code = int(container.wait()["StatusCode"])
            container.reload()
            out_of_memory = bool(container.attrs["State"].get("OOMKilled"))
        except docker.errors.DockerException as error:
            raise _lost(step, error) from error
        finally:
            # Also at Ctrl-C: nothing runs on behind the back of whoever stopped the pipeline.
            with contextlib.suppress(docker.errors.DockerException):
                container.remove(force=True, v=True)
        ended = Ended(step, image, code, out_of_memory, time.perf_counter() - began, log)
        self.ended.append(ended)
        self.on_end(ended)
        return code

    def _writes(self) -> list[Path]:
        """What steps change beside their outputs: the state of this installation."""
        home, artifacts = self.settings.home, self.settings.artifacts
        apart = "://" not in artifacts and not Path(artifacts).absolute().is_relative_to(home)
        return [home, Path(artifacts).absolute()] if apart else [home]

    def _volumes(self) -> dict[str, dict[str, str]]:
        mounts = {str(path): {"bind": str(path), "mode": "ro"} for path in self.reads}
        return mounts | {str(path): {"bind": str(path), "mode": "rw"} for path in self._writes()}

    def _user(self) -> str:
        """Who the steps run as: the person who started this; for root the image's own user, who is given the folders."""
        tops = [self.root, *self._writes()]
        for top in tops:
            # An engine would make what is missing, as root's.
            top.mkdir(parents=True, exist_ok=True)
        if os.getuid() != 0:
            return f"{os.getuid()}:{os.getgid()}"
        for top in tops:
            for place, _, files in os.walk(top):
                for name in (".", *files):
                    os.chown(Path(place) / name, IMAGE_USER, IMAGE_USER, follow_symlinks=False)
        return ""

    def _environment(self) -> dict[str, str]:
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return passed | {
            "ESTEIRA_HOME": str(self.settings.home),
            "ESTEIRA_TENANT": self.settings.tenant,
            "ESTEIRA_ACTOR": self.settings.actor,
            "ESTEIRA_DEVICE": self.settings.device,
            "ESTEIRA_DATABASE_URL": self.settings.database_url,
            "ESTEIRA_MLFLOW_URI": self.settings.mlflow_uri,
            "ESTEIRA_ARTIFACTS": self.settings.artifacts,
            "BENTOML_HOME": "/tmp/bentoml",
        }


def run_in_containers(
    plan: "Plan",
    settings: Settings,
    *,
    run_id: str,
    folder: Path,
    champion: str = "",
    pipeline: Any = None,
    limits: Mapping[str, Any] | None = None,
    on_end: Callable[[Ended], None] = lambda _: None,
) -> list[Ended]:
    """Run the whole DAG of one line, each step in its container.

    Args:
        folder: of the run; gets `<step>/` with what each step left, and `logs/`.
        champion: what the new model is compared with; a path must lie in `settings.home`.
        pipeline: a kfp pipeline, also one loaded from its compiled YAML, which has its own run id; the release pipeline by
            default.
        limits: see Containers.

    Returns:
        How each container ended, in order.

    Raises:
        ContainerFailed: a step failed; the folder holds what was reached.
        ConfigError, OutsideError: an image or the engine is missing.
    """
    reads = [Path(plan.source)] if "://" not in plan.source and Path(plan.source).exists() else []
    containers = Containers(folder, settings, reads=reads, limits=limits, on_end=on_end)
    with containers, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if pipeline is None:
            from pipelines.dag import release

            pipeline = release
        named = {"run_id": run_id} if "run_id" in pipeline.component_spec.inputs else {}
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                pipeline(
                    line=plan.line,
                    source=plan.source,
                    target=plan.target,
                    seed=plan.seed,
                    champion=champion,
                    **named,
                    **plan.sections,
                )
        except RuntimeError as error:
            # A step that may be tried again fails more than once; the last container is what ended the run.
            failed = containers.ended[-1] if containers.ended else None
            if failed is None or failed.code == 0:
                raise
            raise ContainerFailed(error_of(failed), failed) from error
        finally:
            for out in containers.root.glob("*/*/out"):
                if not (folder / out.parent.name).exists():
                    out.rename(folder / out.parent.name)
    return containers.ended


def reach_engine(address: str = "") -> None:
    """Ask the engine at an address, by default the one that `DOCKER_HOST` names or else its usual place, whether it is there.

    Raises:
        OutsideError: it is not.
    """
    import docker

    address = address or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        if address.startswith("unix://"):
            # The client leaves a socket open that could not be connected.
            with socket.socket(socket.AF_UNIX) as door:
                door.connect(address.removeprefix("unix://"))
        with contextlib.closing(docker.from_env(environment={**os.environ, "DOCKER_HOST": address})) as client:
            client.ping()
    except (OSError, docker.errors.DockerException) as error:
        raise OutsideError(
            f"steps in containers need a container engine, but none answers: {str(error)[:300]}",
            code="no_engine",
            where=address,
            cure="start Docker, or set DOCKER_HOST to its socket",
        ) from error


def error_of(ended: Ended) -> dict[str, Any]:
    """The error object of a failed container: the step's own letter where it wrote one, else how it ended."""
    where = f"step {ended.step}; log {ended.log}"
    if ended.code == KILLED:
        why = "it reached its memory limit" if ended.out_of_memory else "it was killed"
        return {
            "kind": "Killed",
            "exit": 2,
            "code": "step_killed",
            "message": f"step {ended.step} must end by itself, but {why} (exit status {ended.code})",
            "where": where,
            "cure": "give it more memory or fewer rows; then run again: nothing was released",
        }
    text = ended.log.read_text(encoding="utf-8")
    letters = list(_LETTER.finditer(text))
    if not letters:
        return {
            "kind": "Failed",
            "exit": 2,
            "code": "step_failed",
            "message": f"the container of step {ended.step} must end with 0, but ended with {ended.code}",
            "where": where,
            "cure": "read its log; nothing was released",
        }
    letter = letters[-1]
    cure = _CURE.search(text, letter.end())
    held = letter["kind"] == "GateHeld"
    return {
        "kind": letter["kind"],
        "exit": 1 if letter["kind"] in {"GateHeld", "DataError", "Refused"} else 2,
        "code": "gate_held" if held else "step_failed",
        "message": letter["message"],
        "where": "; ".join(part for part in (letter["where"], where) if part),
        "cure": cure[1] if cure else "",
    }


def _lost(step: str, error: Exception) -> OutsideError:
    return OutsideError(
        f"the engine must tell how the container of step {step} ended, but: {str(error)[:300]}",
        code="container_lost", where=f"step {step}", cure="look at the engine's log, then run again",
    )  # fmt: skip


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
    if rest:
        yield rest.decode(errors="replace")
