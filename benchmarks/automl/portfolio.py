"""Learns which configurations to try first, and in which order, from how many did on many tables; writes portfolio.json.

Greedy: the next entry is the one whose blend with those before it lowers the mean normalised loss most for what it costs, its
seconds and its place among the trials; by seconds alone, that is within a factor of the best order at any time (Streeter and
Golovin, "An online algorithm for maximizing submodular functions", 2008). A blend stays within the row budget. `--seconds`
bounds the trying; what was tried is kept, so a later call goes on.

python -m benchmarks.automl.portfolio --seconds 3600
python -m benchmarks.automl.portfolio --configs 20 --tasks regression --no-write
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.automl.experience import ROW_US, Config, Experience, data, gather, loss_of, sources, truth
from benchmarks.automl.tables import ROOT
from esteira import outputs
from esteira.automl.api import METRIC
from esteira.automl.ensemble import Limits
from esteira.automl.evaluate import Data
from esteira.automl.kinds.base import Cost, Floats
from esteira.automl.schedule import portfolio

FOLDER = ROOT / "build" / "automl" / "portfolio"
TARGET = ROOT / "esteira" / "automl" / "portfolio.json"
MOST_BYTES = 50_000_000
WEIGHTS = (0.15, 0.3, 0.5, 0.7)  # of a new member beside the blend so far
MOST = 14  # entries of a task
# Of an entry besides its seconds, in the same unit: a search bounded by trials pays by the place. Chosen on tables left out.
PLACE = 32.0
LEAST = 1e-4  # of the mean normalised loss; a smaller gain counts as none
WORST = 3.0  # a normalised loss beyond it counts as it, so that one table does not decide
KEEP_SHARE = 0.7  # of the tables of a task must have an answer of a configuration


@dataclass(frozen=True)
class Evidence:
    """One table and all that was tried on it.

    Attributes:
        losses, held, costs, seconds: by key of the configuration; seconds as multiples of what the quickest LightGBM of the table took.
        best, middle: the least loss, and the median one: normalised to 0 and 1.
        constant: loss of the class shares, or the mean, of the held rows themselves.
    """

    name: str
    data: Data
    labels: NDArray[Any]
    losses: Mapping[str, float]
    held: Mapping[str, Floats]
    costs: Mapping[str, Cost]
    seconds: Mapping[str, float]
    best: float
    middle: float
    constant: float

    def normalised(self, loss: float) -> float:
        """(loss - best) / (median - best), at most WORST."""
        return min(WORST, (loss - self.best) / max(self.middle - self.best, 1e-9))


@dataclass(frozen=True)
class Blend:
    """What a portfolio has reached on a table so far."""

    predicted: Floats | None
    spent: Cost
    loss: float


def evidence(experience: Experience, task: str) -> list[Evidence]:
    """What is known of each table on which three configurations or more have an answer."""
    found = []
    for source in sources(task):
        tried = {key: one for key, one in experience.tried(task, source.name).items() if one.held is not None}
        if len(tried) < 3:
            continue
        source_data = data(source)
        labels = truth(source_data)
        held = {key: one.held for key, one in tried.items() if one.held is not None}
        losses = {key: loss_of(source_data, labels, predicted) for key, predicted in held.items()}
        quickest = min((one.seconds for one in tried.values() if one.config.kind == "lightgbm"), default=1.0)
        found.append(
            Evidence(
                source.name, source_data, labels, losses, held,
                {key: one.cost for key, one in tried.items()},
                {key: max(one.seconds / max(quickest, 1e-3), 0.05) for key, one in tried.items()},
                min(losses.values()), statistics.median(losses.values()), _constant(source_data, labels),
            )
        )  # fmt: skip
    return found


def _constant(source_data: Data, labels: NDArray[Any]) -> float:
    if source_data.classes is None:
        answers = np.full(len(labels), labels.mean())
    else:
        answers = np.tile(np.bincount(labels, minlength=source_data.classes) / len(labels), (len(labels), 1))
    return loss_of(source_data, labels, answers)


def after(table: Evidence, before: Blend, key: str, limits: Limits) -> Blend:
    """The blend once a configuration was tried: as before, with it at one of some weights, or it alone."""
    if key not in table.held:
        return before
    cost, predicted = table.costs[key], table.held[key]
    reached = before
    if table.losses[key] < reached.loss and limits.allow(cost):
        reached = Blend(predicted, cost, table.losses[key])
    if before.predicted is not None and limits.allow(before.spent + cost):
        for weight in WEIGHTS:
            mixed = (1.0 - weight) * before.predicted + weight * predicted
            loss = loss_of(table.data, table.labels, mixed)
            if loss < reached.loss:
                reached = Blend(mixed, before.spent + cost, loss)
    return reached


def select(known: Sequence[Evidence], keys: Sequence[str], limits: Limits) -> list[str]:
    """An ordered portfolio; each next entry gains most for its price on the mean over tables."""
    blends = [Blend(None, Cost(), table.constant) for table in known]
    chosen: list[str] = []
    # What a configuration added when it was last looked at; it seldom adds more later, so most need no second look.
    rates = dict.fromkeys(keys, float("inf"))
    while len(chosen) < MOST:
        best: tuple[float, str, list[Blend]] = (0.0, "", [])
        for key in sorted(rates, key=lambda one: -rates[one]):
            if rates[key] <= best[0]:
                break
            new = [after(table, blend, key, limits) for table, blend in zip(known, blends, strict=True)]
            gain = statistics.fmean(
                table.normalised(blend.loss) - table.normalised(then.loss)
                for table, blend, then in zip(known, blends, new, strict=True)
            )
            price = PLACE + statistics.fmean(table.seconds.get(key, 0.05) for table in known)
            rates[key] = gain / price if gain > LEAST else 0.0
            if rates[key] > best[0]:
                best = rates[key], key, new
        if not best[1]:
            break
        chosen.append(best[1])
        blends = best[2]
        del rates[best[1]]
    # What adds nothing on these tables may on another: the best of their own come after.
    others = [key for key in keys if key not in chosen and all(_allowed(table, key, limits) for table in known)]
    others.sort(key=lambda key: statistics.fmean(table.normalised(table.losses.get(key, math.inf)) for table in known))
    return chosen + others[: MOST - len(chosen)]


def _allowed(table: Evidence, key: str, limits: Limits) -> bool:
    return key not in table.costs or limits.allow(table.costs[key])


def curve(table: Evidence, order: Sequence[str], limits: Limits) -> list[float]:
    """Normalised loss on a table after each entry."""
    blend, found = Blend(None, Cost(), table.constant), []
    for key in order:
        blend = after(table, blend, key, limits)
        found.append(table.normalised(blend.loss))
    return found


def left_out(
    known: Sequence[Evidence], keys: Sequence[str], today: Sequence[str], limits: Limits
) -> dict[str, list[float]]:
    """Mean over tables of the curve on a table that the selection did not see, and of today's portfolio, made even long."""
    curves: dict[str, list[list[float]]] = {"learned": [], "today": []}
    for at, table in enumerate(known):
        rest = [other for position, other in enumerate(known) if position != at]
        curves["learned"].append(curve(table, select(rest, keys, limits), limits))
        curves["today"].append(curve(table, today, limits))
    return {
        name: [statistics.fmean(one[min(k, len(one) - 1)] for one in each) for k in range(MOST)]
        for name, each in curves.items()
        if all(each)
    }


def learn(experience: Experience, task: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The portfolio of a task, and what it is thought to be worth on tables it did not see."""
    known, limits = evidence(experience, task), Limits(ROW_US, MOST_BYTES)
    if not known:
        raise SystemExit(
            f"{task}: three configurations or more have an answer on some table, but on none they do: try longer"
        )
    rows = experience.rows(task)
    tried = {
        key: Config(row["kind"], row["params"], row["recipe"]) for (_, key), row in rows.items()
    }  # fmt: skip
    seen = {key: sum((table.name, key) in rows for table in known) for key in tried}
    # Ones that a stopped run has not tried everywhere would look bad, or good, by their tables only.
    keys = [
        key
        for key in tried
        if seen[key] == len(known)
        and (
            sum(key in table.held for table in known) >= KEEP_SHARE * len(known)
            or tried[key].kind == "nearest_neighbours"
        )
    ]
    today = [Config(name, dict(params), recipe.named()).key for name, params, recipe in portfolio(task)]
    estimate = left_out(known, keys, [key for key in today if key in keys], limits) if len(known) > 2 else {}
    entries = [
        asdict(tried[key]) | {"seconds": round(statistics.fmean(table.seconds.get(key, 0.05) for table in known), 1)}
        for key in select(known, keys, limits)
    ]
    return entries, {
        "tables": [table.name for table in known], "configurations": len(keys), "left_out": estimate
    }  # fmt: skip


def text(found: Mapping[str, Sequence[Mapping[str, Any]]], made_by: str) -> str:
    """portfolio.json, an entry a line: kind, params, recipe, and seconds, as in `Evidence`, on the mean."""
    lines = ["{", '"version": 1,', f'"made_by": {json.dumps(made_by)},']
    for number, (task, entries) in enumerate(found.items(), 1):
        lines.append(f"{json.dumps(task)}: [")
        told = [json.dumps(entry) for entry in entries]
        lines += [line + ("," if at < len(told) else "") for at, line in enumerate(told, 1)]
        lines.append("]" + ("," if number < len(found) else ""))
    return "\n".join([*lines, "}"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=6 * 3600.0, help="for trying, all tasks together (%(default)g)"
    )
    parser.add_argument("--configs", type=int, default=1000, help="configurations of a task at most")
    parser.add_argument("--tasks", default=",".join(METRIC), help="separated by commas (%(default)s)")
    parser.add_argument("--tables", default="", help="only these, separated by commas")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where what was tried is kept (%(default)s)")
    parser.add_argument("--no-write", action="store_true", help="only print")
    options = parser.parse_args()
    tasks = options.tasks.split(",")
    if unknown := sorted(set(tasks) - set(METRIC)):
        parser.error(f"a task is one of {', '.join(METRIC)}, but got {unknown[0]!r}")
    experience, began = Experience(options.folder), time.monotonic()
    only = [name for name in options.tables.split(",") if name]
    for number, task in enumerate(tasks, 1):
        until = began + options.seconds * number / len(tasks)
        for line in gather(experience, task, most=options.configs, until=until, only=only):
            print(line, file=sys.stderr, flush=True)
    today = json.loads(TARGET.read_text(encoding="utf-8"))
    chosen: dict[str, list[dict[str, Any]]] = {task: today[task] for task in METRIC}
    notes = []
    for task in tasks:
        chosen[task], told = learn(experience, task)
        notes.append(f"{task} {told['configurations']} configurations on {len(told['tables'])} tables")
        print(
            f"\n{task}: {len(chosen[task])} of {told['configurations']} configurations, on {', '.join(told['tables'])}"
        )
        for entry in chosen[task]:
            print(f"  {entry['kind']} {entry['params']} {entry['recipe'] or ''} {entry['seconds']}")
        for name, losses in told["left_out"].items():
            shown = " ".join(f"{losses[k - 1]:.3f}" for k in (1, 2, 4, 8, MOST))
            print(f"  on a table left out, after 1, 2, 4, 8 and {MOST}: {name} {shown}")
    if not options.no_write:
        made = text(chosen, f"make portfolio: {'; '.join(notes)}")
        outputs.write(TARGET.parent, {TARGET.name: made.encode()})


if __name__ == "__main__":
    main()
