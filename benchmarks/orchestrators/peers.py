"""The peers: which command runs the six steps, which runs them again unchanged, and what is made ready before, untimed.

Each project below `projects/` is written as its users would write it; nothing here measures.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
PROJECTS = HERE / "projects"

# What tells the peers to send no figures about their use.
SILENT = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "KEDRO_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


@dataclass(frozen=True)
class Peer:
    """One way to run the six steps.

    Attributes:
        project: folder below `projects/`; copied, so that each round starts without state.
        first: the command that runs it; words in braces are filled in: {run} is a name that no other command had.
        again: the same command, or the one that its users take to run it again, unchanged.
        reuses: what the second command relies on, for the table.
        prepare: commands before the first, untimed.
        environment: variables besides SILENT; {home} is a folder that lasts over all rounds, {work} one round's.
        server: a command that must be up around both; {port} is a free port of loopback.
    """

    name: str
    project: str
    first: tuple[str, ...]
    again: tuple[str, ...]
    reuses: str
    prepare: tuple[tuple[str, ...], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    server: tuple[str, ...] = ()

    @property
    def lock(self) -> Path | None:
        """What its environment is made of; None for what runs in the project's own."""
        file = PROJECTS / self.project / "requirements.lock"
        return file if file.exists() else None


_PREFECT = {
    # It gives its own server 20 s to start, and on a loaded machine gives up; this changes no figure.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_HOME": "{home}/prefect",
    "PREFECT_LOCAL_STORAGE_PATH": "{work}/results",
}

PEERS: tuple[Peer, ...] = (
    Peer(
        "esteira",
        "esteira",
        ("python", "run.py", "{run}"),
        ("python", "run.py", "{run}"),
        "receipts keyed on content: parameters, inputs, code, packages, outputs",
    ),
    Peer("kfp", "kfp", ("python", "pipeline.py"), ("python", "pipeline.py"), "nothing (the local runner's default)"),
    Peer(
        "kfp cached",
        "kfp",
        ("python", "pipeline.py", "cache"),
        ("python", "pipeline.py", "cache"),
        "its cache, keyed on command, parameters and the names of inputs",
    ),
    Peer(
        "dvc",
        "dvc",
        ("dvc", "repro"),
        ("dvc", "repro"),
        "dvc.lock, keyed on content of declared files",
        prepare=(
            ("mv", "stages.yaml", "dvc.yaml"),
            ("git", "init", "--quiet"),
            ("dvc", "init", "--quiet"),
            ("dvc", "config", "core.check_update", "false"),
        ),
    ),
    Peer(
        "kedro",
        "kedro",
        ("kedro", "run"),
        ("kedro", "run", "--only-missing-outputs"),
        "`--only-missing-outputs`: that a file exists",
    ),
    Peer(
        "metaflow",
        "metaflow",
        ("python", "flow.py", "run"),
        ("python", "flow.py", "resume"),
        "`resume`: that the step succeeded in the last run",
        environment={"METAFLOW_USER": "bench", "METAFLOW_HOME": "{home}/metaflow"},
    ),
    Peer(
        "prefect",
        "prefect",
        ("python", "flow.py"),
        ("python", "flow.py"),
        "cache policy `TASK_SOURCE + INPUTS`, results kept on disk",
        environment=_PREFECT,
    ),
    Peer(
        "prefect with server",
        "prefect",
        ("python", "flow.py"),
        ("python", "flow.py"),
        "the same; its server was started before, untimed",
        environment={**_PREFECT, "PREFECT_API_URL": "http://127.0.0.1:{port}/api"},
        server=("prefect", "server", "start", "--host", "127.0.0.1", "--port", "{port}"),
    ),
)
