"""Runs `esteira run` and the plain script by turns on the same table, and prints every figure; see README.md beside it.

Prints a table for people and, last, one JSON line; exits 0 whatever the figures are, 1 when a side failed.
"""

import argparse
import dataclasses
import gzip
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable


class Table(NamedTuple):
    """What is run, and how far our side may be behind: at most `factor` times the plain script's wall time plus `plus` seconds."""

    name: str
    file: Path
    target: str
    factor: float
    plus: float


def tables(chosen: str, data: Path | None, target: str | None, work: Path) -> list[Table]:
    """The tables to run; gzip is unpacked, so that neither side pays for it."""
    if data is not None:
        if target is None:
            raise SystemExit("--data needs --target")
        name = data.name.split(".")[0].lower()
        return [
            Table(
                name if name != "data" else data.resolve().parent.name,
                _unpacked(data, work / "data.csv"),
                target,
                1.5,
                3.0,
            )
        ]
    found = []
    if chosen in {"both", "small"}:
        _call([PYTHON, "-m", "esteira.cli", "data", "--out", str(work / "data")], work)
        found.append(Table("small", work / "data" / "breast_cancer.csv", "diagnosis", 2.5, 0.0))
    if chosen in {"both", "adult"}:
        folder = Path(os.environ.get("ESTEIRA_TEST_DATA", ROOT.parent / "shared" / "data"))
        source = folder / "tabular_adult" / "data.csv.gz"
        if source.exists():
            found.append(Table("adult", _unpacked(source, work / "adult.csv"), "income", 1.5, 3.0))
        else:
            print("adult is left out: $ESTEIRA_TEST_DATA has no tabular_adult/data.csv.gz", file=sys.stderr)
    return found


def _unpacked(source: Path, file: Path) -> Path:
    raw = source.read_bytes()
    file.write_bytes(gzip.decompress(raw) if source.suffix == ".gz" else raw)
    return file


def run_ours(table: Table, state: Path, trials: int, seed: int) -> tuple[float, dict[str, Any]]:
    """`esteira run` with fresh state; wall seconds and its JSON."""
    state.mkdir(parents=True)
    command = [
        PYTHON, "-m", "esteira.cli", "run", "tabular", "--as", table.name, "--source", str(table.file), "--target", table.target,
        "--seed", str(seed), "--set", f"train.trials={trials}", "--json",
    ]  # fmt: skip
    began = time.perf_counter()
    printed = _call(command, state)
    return time.perf_counter() - began, json.loads(printed)


def run_plain(
    table: Table, state: Path, candidates: Path, held_back: Path, bundle: Path, trials: int, seed: int
) -> tuple[float, dict[str, Any]]:
    """The plain script with fresh state; wall seconds and its JSON."""
    state.mkdir(parents=True)
    command = [
        PYTHON, str(Path(__file__).with_name("plain_script.py")), "--data", str(table.file), "--target", table.target,
        "--candidates", str(candidates), "--test-rows", str(held_back), "--bundle", str(bundle), "--out", str(state / "state"),
        "--trials", str(trials), "--seed", str(seed),
    ]  # fmt: skip
    began = time.perf_counter()
    printed = _call(command, state)
    return time.perf_counter() - began, json.loads(printed.splitlines()[-1])


def write_candidates(bundle: Path, rows: int, file: Path) -> None:
    """The kinds and spaces that the plain script searches; our side's own engine knows where to start."""
    from benchmarks.dag.spaces import candidates

    task = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["task"]
    file.write_text(
        json.dumps([dataclasses.asdict(one) for one in candidates(task, int(rows * 0.8))]), encoding="utf-8"
    )


def write_held_back(run: Path, file: Path) -> None:
    """The rows that our side held back, from 0, for the plain script to hold back too."""
    import pyarrow.parquet

    found = run / "featurize" / "rows_test.parquet"
    rows = pyarrow.parquet.read_table(found, columns=["__row__"])["__row__"].to_pylist()
    file.write_text(json.dumps([row - 1 for row in rows]), encoding="utf-8")


def imports_of_steps(result: Mapping[str, Any], state: Path) -> dict[str, float]:
    """Seconds that each step spends in imports as a bare process, by `python -X importtime`, on the folders of a finished run."""
    line, run_id = result["line"], result["run_id"]
    folder = state / "build" / line / run_id
    plan = json.loads((folder / "run.json").read_text(encoding="utf-8"))["plan"]
    out = {name: folder / name for name in ("ingest", "validate", "featurize", "train", "evaluate", "register")}
    contract, dataset = out["validate"] / "contract.yaml", out["ingest"] / "dataset.json"
    told: dict[str, dict[str, Any]] = {
        "ingest": {"source": plan["source"], "target": plan["target"], "line": line},
        "validate": {"rows": out["ingest"] / "rows.parquet", "dataset": dataset, "target": plan["target"], "line": line},
        "featurize": {"rows": out["validate"] / "rows.parquet", "contract": contract, "seed": plan["seed"]},
        "train": {"features": out["featurize"], "contract": contract, "line": line, "seed": plan["seed"]},
        "evaluate": {
            "features": out["featurize"], "trained": out["train"], "contract": contract, "dataset": dataset, "line": line,
            "seed": plan["seed"],
        },
        "register": {
            "evaluated": out["evaluate"], "trained": out["train"], "dataset": dataset, "line": line, "run-id": run_id,
        },
        "deploy": {"receipt": out["register"] / "receipt.json", "bundle": out["evaluate"] / "bundle", "line": line},
    }  # fmt: skip
    seconds = {}
    # A fresh home, so that register and deploy do what they do at first.
    environment = {**_environment(state), "ESTEIRA_HOME": str(state / "again" / "home")}
    for name, arguments in told.items():
        command = [PYTHON, "-X", "importtime", "-m", "esteira.cli", "step", name, "--out", str(state / "again" / name)]
        for key, value in arguments.items():
            command += [f"--{key}", str(value)]
        done = subprocess.run(command, cwd=state, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"  step {name} did not end well as a bare process: {done.stderr.splitlines()[-1:]}", file=sys.stderr)
        # Only lines that are not indented: what they imported in turn is within their cumulative time.
        outer = re.findall(r"^import time:\s+\d+ \|\s+(\d+) \| \S", done.stderr, re.MULTILINE)
        seconds[name] = round(sum(map(int, outer)) / 1e6, 2)
    return seconds


def compare(table: Table, work: Path, *, rounds: int, trials: int, seed: int) -> dict[str, Any]:
    """A B A B ... on one table, after one run of our side that is not timed and gives the bundle to serve."""
    first = work / table.name / "first"
    print(f"\n{table.name}: {table.target} of {table.file.name}, {trials} trials, seed {seed}", flush=True)
    _, warm = run_ours(table, first, trials, seed)
    bundle = first / warm["bundle"]
    rows = sum(1 for _ in table.file.open(encoding="utf-8")) - 1
    candidates = work / table.name / "candidates.json"
    write_candidates(bundle, rows, candidates)
    held_back = work / table.name / "held_back.json"
    write_held_back(first / "build" / warm["line"] / warm["run_id"], held_back)
    walls: dict[str, list[float]] = {"plain": [], "esteira": []}
    documents: dict[str, list[dict[str, Any]]] = {"plain": [], "esteira": []}
    for number in range(rounds):
        for side in ("plain", "esteira"):
            state = work / table.name / f"{side}-{number}"
            if side == "plain":
                seconds, document = run_plain(table, state, candidates, held_back, bundle, trials, seed)
            else:
                seconds, document = run_ours(table, state, trials, seed)
            walls[side].append(round(seconds, 2))
            documents[side].append(document)
            print(f"  {side:<8} {seconds:7.2f} s", flush=True)
            shutil.rmtree(state)
    plain, ours = statistics.median(walls["plain"]), statistics.median(walls["esteira"])
    bound = table.factor * plain + table.plus
    found = {
        "table": table.name,
        "rows": rows,
        "trials": trials,
        "seconds": walls,
        "median": {"plain": plain, "esteira": ours},
        "ratio": round(ours / plain, 3),
        "bound_seconds": round(bound, 2),
        "within_bound": ours <= bound,
        "steps": {
            step["name"]: statistics.median(one["steps"][at]["seconds"] for one in documents["esteira"])
            for at, step in enumerate(documents["esteira"][0]["steps"])
        },
        "plain_parts": {
            name: statistics.median(one["seconds"][name] for one in documents["plain"])
            for name in documents["plain"][0]["seconds"]
        },
        "plain_score": documents["plain"][-1]["metrics"]["primary"],
        "score": next(iter(documents["esteira"][-1]["metrics"].values())),
        "import_seconds": imports_of_steps(warm, first),
    }
    _tell(found)
    return found


def _tell(found: Mapping[str, Any]) -> None:
    print(f"  median: plain {found['median']['plain']:.2f} s, esteira {found['median']['esteira']:.2f} s, ratio {found['ratio']:.2f}"
          f" (bound {found['bound_seconds']:.1f} s: {'within' if found['within_bound'] else 'BEYOND'})")  # fmt: skip
    print(f"  score on held-back rows: plain {found['plain_score']:.4f}, esteira {found['score']:.4f}")
    print("  the plain script's parts: " + _listed(found["plain_parts"]))
    print("  our steps in a run:       " + _listed(found["steps"]))
    print("  imports of a bare step:   " + _listed(found["import_seconds"]))


def _listed(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())


def _environment(state: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ESTEIRA_")}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return {**kept, "ESTEIRA_HOME": str(state / "home"), "OMP_WAIT_POLICY": "passive"}


def _call(command: Sequence[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=_environment(cwd), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(command[1:6])} ... ended with {done.returncode}:\n{done.stderr[-3000:]}{done.stdout[-1500:]}"
        )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=("both", "small", "adult"), default="both")
    parser.add_argument("--data", type=Path, help="a CSV of your own instead")
    parser.add_argument("--target", help="its label column")
    parser.add_argument("--rounds", type=int, default=2, help="times each side runs (default 2: A B A B)")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="esteira-bench-") as folder:
        work = Path(folder)
        found = [
            compare(table, work, rounds=options.rounds, trials=options.trials, seed=options.seed)
            for table in tables(options.table, options.data, options.target, work)
        ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
