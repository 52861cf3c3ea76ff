"""The peers: how each is made ready and started, how rows are put to it, and where its answer says what. Nothing here measures."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Row = Mapping[str, float]
KEY = "a-key-of-the-benchmark"


class Said(NamedTuple):
    """One row's answer: its label, and the probability of the second class."""

    label: str
    probability: float


@dataclass(frozen=True)
class Peer:
    """One way to serve the model.

    Attributes:
        project: folder below `projects/` with its lock and its files; empty for what runs in this environment.
        package: whose version stands in the table.
        command: starts the server, in front; {port}, {port2} and {port3} are free ports of loopback, {model} is the folder with
            `graph.onnx`, `columns.json` and the Bento, {work} a folder of its own.
        path: where rows are sent.
        body: rows -> the JSON document that is sent.
        said: the JSON document that is answered, and the classes -> one answer a row, in order.
        prepare: commands before the start, untimed.
        environment: variables; filled in as the command is.
        checks: what the table says that it does on each request besides answering.
    """

    name: str
    project: str
    package: str
    command: tuple[str, ...]
    path: str
    body: Callable[[Sequence[Row]], Any]
    said: Callable[[Any, Sequence[str]], list[Said]]
    prepare: tuple[tuple[str, ...], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    checks: str = ""


def _rows(rows: Sequence[Row]) -> Any:
    return {"rows": list(rows)}


def _said(document: Any, classes: Sequence[str]) -> list[Said]:
    return [Said(row["prediction"], row["probabilities"][classes[1]]) for row in document["rows"]]


def _records(rows: Sequence[Row]) -> Any:
    return {"dataframe_records": list(rows)}


def _predictions(document: Any, classes: Sequence[str]) -> list[Said]:
    return [Said(row["prediction"], row[classes[1]]) for row in document["predictions"]]


def _tensors(rows: Sequence[Row]) -> Any:
    return {
        "parameters": {"content_type": "pd"},
        "inputs": [
            {"name": name, "shape": [len(rows), 1], "datatype": "FP64", "data": [row[name] for row in rows]}
            for name in rows[0]
        ],
    }


def _outputs(document: Any, classes: Sequence[str]) -> list[Said]:
    outputs = {output["name"]: output["data"] for output in document["outputs"]}
    labels, flat = outputs["prediction"], outputs["probabilities"]
    width = len(classes)
    return [Said(label, flat[at * width + 1]) for at, label in enumerate(labels)]


_SERVE = (sys.executable, "-m", "serving", "serve", "--bento", "{model}/bento", "--port", "{port}")
_AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
_ALL = "key, contract, warnings, limits, deadlines, request ids, metrics"


def _ours(name: str, **settings: str) -> Peer:
    return Peer(
        name, "", "esteira", _SERVE, "/v1/predict", _rows, _said,
        environment={"ESTEIRA_API_KEY": KEY, "ESTEIRA_HOME": "{work}/home", **settings},
        headers=_AUTHORIZED, checks=_ALL,
    )  # fmt: skip


PEERS: tuple[Peer, ...] = (
    _ours("esteira"),
    Peer(
        "fastapi",
        "fastapi",
        "fastapi",
        ("uvicorn", "app:app", "--port", "{port}", "--workers", "1", "--no-access-log"),
        "/predict",
        _rows,
        _said,
        environment={"MODEL": "{model}"},
        checks="types of fields",
    ),
    Peer(
        "mlflow",
        "mlflow",
        "mlflow",
        ("mlflow", "models", "serve", "-m", "saved", "--env-manager", "local", "--host", "127.0.0.1", "--port", "{port}",
         "--workers", "1"),
        "/invocations",
        _records,
        _predictions,
        prepare=(("python", "save.py", "{model}", "saved"),),
        environment={"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRACKING_URI": "sqlite:///{work}/mlflow.db"},
        checks="signature",
    ),
    Peer(
        "mlserver",
        "mlserver",
        "mlserver",
        ("mlserver", "start", "."),
        "/v2/models/model/infer",
        _tensors,
        _outputs,
        environment={
            "MODEL": "{model}",
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": "{port2}",
            "MLSERVER_METRICS_PORT": "{port3}",
            "MLSERVER_DEBUG": "false",
            # In the server's own process, which is faster for a small model than a worker behind a queue.
            "MLSERVER_PARALLEL_WORKERS": "0",
        },
        checks="V2 protocol, metrics",
    ),
    # Ours with one thing changed; run when asked for.
    _ours("esteira alone", ESTEIRA_BATCH_ROWS="1"),
    _ours("esteira waiting", ESTEIRA_BATCH_MS="1"),
    _ours("esteira cached", ESTEIRA_ANSWER_CACHE="64MB"),
)  # fmt: skip
DEFAULT = ("esteira", "fastapi", "mlflow", "mlserver")
