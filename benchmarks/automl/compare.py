"""Fits ours and its peers on public tables, each as a command of its own by turns, and keeps what they did; see README.md beside it.

Every result is appended to a file of JSON lines as it comes, and what is there is not run again, so that a long comparison
may be stopped and gone on with. Prints the table of figures.py; exits 0 whatever the figures are.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.automl import child, environments, figures, tables
from benchmarks.automl.tables import ROOT, TABLES, Table
from benchmarks.orchestrators.compare import machine
from esteira.automl.api import METRIC

RESULTS = ROOT / "build" / "automl" / "results.jsonl"
INSIDE = Path(__file__).with_name("inside.py")
LATENCY_CALLS = 200
SILENT = {"DO_NOT_TRACK": "1", "OMP_WAIT_POLICY": "passive", "PYTHONWARNINGS": "ignore"}


class Peer(NamedTuple):
    """One system.

    Attributes:
        project: folder below `projects/` with its lock; empty for what runs in this environment.
        package: whose version stands in the table.
        imports: what a process has imported before it fits; its memory is measured once and taken off the peak.
    """

    name: str
    project: str
    package: str
    imports: str


_OURS = "import esteira.automl, lightgbm, xgboost, optuna, onnx, onnxruntime, pandas, scipy.stats, sklearn.ensemble"
PEERS = (
    Peer("ours", "", "esteira", _OURS),
    Peer("ours_best", "", "esteira", _OURS),
    Peer("flaml", "flaml", "flaml", "import pandas; from flaml import AutoML"),
    Peer(
        "autogluon_medium",
        "autogluon",
        "autogluon-tabular",
        "import pandas; from autogluon.tabular import TabularPredictor",
    ),
    Peer(
        "autogluon_best",
        "autogluon",
        "autogluon-tabular",
        "import pandas; from autogluon.tabular import TabularPredictor",
    ),
    Peer("lightgbm", "", "lightgbm", "import pandas, lightgbm"),
)
DEFAULT_PEERS = tuple(peer.name for peer in PEERS if peer.name != "ours_best")


def commands(peer: Peer, table: Table, budget: float, seed: int, binaries: Path) -> dict[str, list[str]]:
    """What its user would type: `fit`, `predict` and `latency`; files lie in the working directory."""
    if peer.package == "esteira":
        tool = str(binaries / "esteira")
        fit = [
            tool, "automl", "--train", "train.csv", "--target", table.target, "--budget", f"{budget:g}", "--out", "model",
            "--metric", METRIC[table.task], "--seed", str(seed), "--json", *(["--best"] if peer.name == "ours_best" else []),
        ]  # fmt: skip
        predict = [tool, "predict", "--bundle", "model", "--data", "test.csv"]
    else:
        inside = [str(binaries / "python"), str(INSIDE)]
        fit = [
            *inside, "fit", peer.name, "--train", "train.csv", "--target", table.target, "--task", table.task,
            "--budget", f"{budget:g}", "--seed", str(seed), "--out", "model",
        ]  # fmt: skip
        predict = [*inside, "predict", peer.name, "--bundle", "model", "--data", "test.csv"]
    return {
        "fit": fit,
        "predict": [*predict, "--out", "answers.csv"],
        "latency": [*predict, "--latency", str(LATENCY_CALLS)],
    }


def once(peer: Peer, table: Table, seed: int, budget: float, binaries: Path, work: Path) -> dict[str, Any]:
    """Fit, answer the test rows, time single rows.

    Args:
        work: an empty folder; the peer never sees the test rows' labels.

    Returns:
        The measurements; `failed` says in words what went wrong, and the loss is then missing.
    """
    import pandas as pd

    train, test = tables.split(tables.read(table), table, seed)
    train.to_csv(work / "train.csv", index=False)
    test.drop(columns=table.target).to_csv(work / "test.csv", index=False)
    environment = {
        **{name: value for name, value in os.environ.items() if name in {"LANG", "LC_ALL", "TMPDIR"}},
        **SILENT,
        "HOME": str(work),
        "PATH": os.pathsep.join([str(binaries), os.environ.get("PATH", os.defpath)]),
    }
    line = commands(peer, table, budget, seed, binaries)
    found: dict[str, Any] = {
        "constant": round(figures.constant_loss(table.task, train[table.target], test[table.target]), 6),
        "frame_mb": round(float(train.memory_usage(deep=True).sum()) / 1e6, 1),
    }
    fitted = child.run(line["fit"], cwd=work, environment=environment, limit=3 * budget + 300)
    found |= {"fit_seconds": round(fitted.seconds, 2), "peak_mb": round(fitted.peak_mb)}
    if fitted.why:
        return {**found, "failed": f"fit {fitted.why}"}
    found["bytes"] = sum(path.stat().st_size for path in (work / "model").rglob("*") if path.is_file())
    answered = child.run(line["predict"], cwd=work, environment=environment, limit=600)
    if answered.why:
        return {**found, "failed": f"predict {answered.why}"}
    found |= figures.scores(table.task, test[table.target], pd.read_csv(work / "answers.csv"))
    single = child.run(line["latency"], cwd=work, environment=environment, limit=600)
    if single.why:
        return {**found, "failed": f"latency {single.why}"}
    said = next(text for text in single.said.splitlines() if text.startswith("LATENCY "))
    latency = json.loads(said.removeprefix("LATENCY "))
    return {**found, "row_us": latency["median"], "row_p95_us": latency["p95"], "row_calls": latency["calls"]}


def version(peer: Peer) -> str:
    """Of the lock, or of this environment; ours with the commit."""
    if peer.project:
        lock = (environments.PROJECTS / peer.project / "requirements.lock").read_text(encoding="utf-8")
        wanted = f"{peer.package}=="
        return next(text.split()[0] for text in lock.splitlines() if text.startswith(wanted)).removeprefix(wanted)
    from importlib.metadata import version as installed

    if peer.package != "esteira":
        return installed(peer.package)
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return f"{installed(peer.package)} {asked.stdout.strip()}".strip()


def read_results(path: Path) -> list[dict[str, Any]]:
    """The last result of each peer, table, seed and budget; a line cut off by a kill is passed over."""
    if not path.exists():
        return []
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            continue
        kept[_key(row)] = row
    return list(kept.values())


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["peer"], row["set"], row["seed"], row["budget"]


def _turns(chosen: Sequence[Table], peers: Sequence[Peer], seeds: int) -> Iterator[tuple[Table, int, Peer]]:
    for table in chosen:
        for seed in tables.seeds(table, seeds):
            for peer in peers:
                yield table, seed, peer


def measure(
    peers: Sequence[Peer], chosen: Sequence[Table], *, budget: float, seeds: int, results: Path, again: Sequence[str]
) -> None:
    """Run what is not in the results yet, peers by turns on every split, and append each as it ends.

    Args:
        again: peers that are measured anew whatever the file holds.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    there = {_key(row) for row in read_results(results) if row["peer"] not in again and "failed" not in row}
    binaries = {
        peer.name: environments.commands(peer.project) if peer.project else Path(sys.executable).parent
        for peer in peers
    }
    versions = {peer.name: version(peer) for peer in peers}
    imported: dict[str, float] = {}
    plan = [turn for turn in _turns(chosen, peers, seeds) if (turn[2].name, turn[0].name, turn[1], budget) not in there]
    for number, (table, seed, peer) in enumerate(plan, 1):
        with tempfile.TemporaryDirectory(prefix="esteira-automl-") as folder:
            work = Path(folder)
            if peer.name not in imported:
                python = [str(binaries[peer.name] / "python"), "-c", peer.imports]
                bare = child.run(python, cwd=work, environment={**SILENT, "HOME": folder}, limit=300)
                imported[peer.name] = bare.peak_mb
            load = round(os.getloadavg()[0], 2)
            found = once(peer, table, seed, budget, binaries[peer.name], work)
        row = {
            "peer": peer.name, "version": versions[peer.name], "set": table.name, "task": table.task, "seed": seed,
            "budget": budget, **found, "imports_mb": round(imported[peer.name]), "load": load,
            "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        said = row.get("failed") or f"loss {row['loss']:.5g}, {row['fit_seconds']:.1f} s, {row['row_us']:.0f} us a row"
        print(f"{number:>4}/{len(plan)} {table.name} {seed} {peer.name}: {said}", file=sys.stderr, flush=True)


def main() -> None:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds that each may search (default %(default)g)")
    parser.add_argument("--seeds", type=int, default=3, help="splits of each small table; larger ones have one")
    parser.add_argument("--peers", default=",".join(DEFAULT_PEERS), help=f"of {', '.join(names)}; default: %(default)s")
    parser.add_argument("--sets", default=",".join(TABLES), help="separated by commas; all: %(default)s")
    parser.add_argument("--again", default="", help="peers that are measured anew though results are there")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines, appended to")
    parser.add_argument("--table-only", action="store_true", help="run nothing, print the table of what is there")
    parser.add_argument("--write", type=Path, help="markdown file that takes the table between its markers")
    options = parser.parse_args()
    for asked, known in ((options.peers, names), (options.sets, list(TABLES)), (options.again, ["", *names])):
        if unknown := sorted(set(asked.split(",")) - set(known)):
            parser.error(f"no such name: {', '.join(unknown)}; there are {', '.join(known)}")
    if not options.budget > 0 or options.seeds < 1:
        parser.error("the budget is above 0 seconds, and there is at least one seed")
    peers = [peer for peer in PEERS if peer.name in options.peers.split(",")]
    chosen = [TABLES[name] for name in TABLES if name in options.sets.split(",")]
    place = f"automl {options.budget:g}"
    if options.write is not None:
        figures.around(options.write, place)  # before hours of runs, not after them
    began = time.monotonic()
    if not options.table_only:
        measure(
            peers, chosen, budget=options.budget, seeds=options.seeds, results=options.results,
            again=options.again.split(","),
        )  # fmt: skip
    rows = [
        row
        for row in read_results(options.results)
        if row["budget"] == options.budget
        and row["peer"] in options.peers
        and row["set"] in {each.name for each in chosen}
        and row["seed"] in tables.seeds(TABLES[row["set"]], options.seeds)
    ]
    if not rows:
        raise SystemExit("no results at this budget")
    rows.sort(key=lambda row: (list(TABLES).index(row["set"]), names.index(row["peer"]), row["seed"]))
    text = figures.markdown(rows, options.budget, machine())
    print(text)
    if options.write is not None:
        figures.put(options.write, place, text)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    if platform.system() != "Linux":
        raise SystemExit("memory and cores are read as Linux has them; run it there")
    # As Ctrl-C does: what was started is ended.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    main()
