"""Preloaded processes that steps are forked from, so that a step does not pay for its imports again.

Measured on 2 cores, imports are two thirds of a seven-step run when every step is a bare process. A fork server imports a
group of libraries while other steps run, and only imports: it never fits, opens files or starts threads. Each step still is
a process of its own, ends with `os._exit`, and dies with its parent. It knows nothing of what a step does.
"""

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

# Served between two imports, so the first group a step needs comes first.
PRELOAD: Mapping[str, Sequence[str]] = {
    "learn": (
        "kfp.dsl.executor_main",
        "components.ingest",
        "pandas",
        "components.featurize",
        "components.train",
        "components.evaluate",
        "sklearn.ensemble",
        "sklearn.linear_model",
        "sklearn.model_selection",
        "optuna",
        "xgboost",
        "onnx",
        "onnxruntime",
    ),
    "kfp": ("kfp.dsl.executor_main",),
    "checks": ("kfp.dsl.executor_main", "pandas", "great_expectations", "components.validate"),
    "registry": (
        "kfp.dsl.executor_main",
        "components.register",
        "components.deploy",
        "esteira.registry.mlflow_mirror",
        "mlflow",
    ),
}

_PR_SET_PDEATHSIG = 1


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel (Linux) to signal this process when its parent ends; elsewhere the closed socket ends it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number)


@dataclass(frozen=True)
class Outcome:
    """How a forked step ended.

    Attributes:
        code: exit status; negative is the signal that ended it.
        error: `{"kind", "code", "message", "where", "cure", "exit"}` when the step raised, else None.
    """

    code: int
    error: dict[str, Any] | None


class ForkServer:
    """One preloaded process. Forks one step at a time.

    Args:
        group: a key of PRELOAD.
        close: file descriptors of the caller that the fork server must not keep open.
    """

    def __init__(self, group: str, close: Sequence[int] = ()) -> None:
        self.group = group
        parent, child = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns when a process with threads forks; only libraries' idle threads are meant here.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            parent.close()
            for descriptor in close:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            _serve(child, group)
        child.close()
        self._socket = parent

    def run(
        self,
        job: Mapping[str, Any],
        *,
        on_line: Callable[[str], None],
        on_wait: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Fork a step and wait for its end.

        Args:
            job: `{"step": name, "source": component source, "argv": [...], "env": {...}, "tmp": folder}`.
            on_line: receives each line that the step prints (standard output and error).
            on_wait: called about ten times a second, to refresh a display.
        """
        reader, writer = os.pipe()
        socket.send_fds(self._socket, [json.dumps(job).encode() + b"\n"], [writer])
        os.close(writer)
        buffered, reply, printed_all = b"", b"", False
        with os.fdopen(reader, "rb", buffering=0) as output:
            while not (reply.endswith(b"\n") and (printed_all or not select.select([output], [], [], 0)[0])):
                watched: list[Any] = [self._socket] if printed_all else [self._socket, output]
                ready = select.select(watched, [], [], 0.1)[0]
                if output in ready:
                    chunk = output.read(65536)
                    printed_all = not chunk
                    *lines, buffered = (buffered + chunk).split(b"\n")
                    for line in lines:
                        on_line(line.decode(errors="replace"))
                if self._socket in ready:
                    part = self._socket.recv(65536)
                    if not part:
                        return Outcome(-signal.SIGKILL, None)
                    reply += part
                on_wait()
        if buffered:
            on_line(buffered.decode(errors="replace"))
        ended = json.loads(reply)
        return Outcome(ended["code"], ended["error"])

    def stop(self) -> None:
        """End the fork server and the step it may be running; safe to call twice."""
        self._socket.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _serve(channel: socket.socket, group: str) -> NoReturn:
    """The fork server's life: import, and between imports fork what is asked for; ends when the caller goes."""
    try:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # As in a component's container: kfp then imports its executor (0.06 s) and not its client (2.2 s).
        os.environ["_KFP_RUNTIME"] = "true"
        devnull = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(devnull, stream)
        for module in PRELOAD[group]:
            # What cannot be imported here fails in the step that needs it, with its own message.
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
            while select.select([channel], [], [], 0)[0]:
                _fork_one(channel)
        while True:
            _fork_one(channel)
    finally:
        os._exit(0)


def _fork_one(channel: socket.socket) -> None:
    message, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 1)
    if not message:
        os._exit(0)
    while not message.endswith(b"\n"):
        message += channel.recv(1 << 16)
    job = json.loads(message)
    output = descriptors[0]
    error_reader, error_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(error_reader)
        _step(job, output, error_writer)
    os.close(output)
    os.close(error_writer)
    with os.fdopen(error_reader, "rb") as stream:
        error = stream.read()
    _, status = os.waitpid(pid, 0)
    reply = {"code": os.waitstatus_to_exitcode(status), "error": json.loads(error) if error else None}
    channel.sendall(json.dumps(reply).encode() + b"\n")


def _step(job: Mapping[str, Any], output: int, errors: int) -> NoReturn:
    """The forked step: run kfp's executor on the component's source, report an error in one JSON document, leave."""
    code = 1
    try:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
        os.environ.update(job["env"])
        folder = Path(job["tmp"])
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = str(folder)
        source = folder / "ephemeral_component.py"
        source.write_text(job["source"], encoding="utf-8")
        from kfp.dsl.executor_main import executor_main

        from esteira import crash

        crash.STEP = job["step"]
        sys.argv = ["executor_main", "--component_module_path", str(source), *job["argv"]]
        executor_main()
        code = 0
    except BaseException as error:  # noqa: BLE001 - the whole point: whatever ends a step is told to its runner
        traceback.print_exc()
        report = describe(error)
        code = report["exit"]
        os.write(errors, json.dumps(report).encode())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as the error object that a runner shows; see DESIGN 9, rule 8 for `exit`."""
    import errno

    from pydantic import ValidationError

    from esteira.errors import EsteiraError

    if isinstance(error, EsteiraError):
        return {"kind": type(error).__name__, "exit": error.exit_code, **error.to_dict()}
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole)"
        return {
            "kind": "ConfigError",
            "exit": 2,
            "code": "bad_params",
            "message": f"{field}: {first['msg']}, but got {str(first.get('input'))[:200]!r}",
            "where": error.title,
            "cure": "correct params.yaml or --set; each step's parameters are listed by `esteira step STEP --help`",
        }
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return {
            "kind": "OutsideError",
            "exit": 2,
            "code": "disk_full",
            "message": f"a file could not be written whole: {error.strerror}",
            "where": str(error.filename or ""),
            "cure": "free space where build/ and $ESTEIRA_HOME lie, then run again; nothing was released",
        }
    return {
        "kind": type(error).__name__,
        "exit": 2,
        "code": "internal",
        "message": f"{type(error).__name__}: {str(error)[:500]}",
        "where": "",
        "cure": "this is a fault of ours or of a library: see the step's log, or run again with --debug",
    }
