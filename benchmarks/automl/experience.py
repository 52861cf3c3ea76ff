"""How many configurations do on many tables, by folds of training rows; results and predictions are kept as they come.

Tables are the public ones, without any row that a split of compare.py tests on, and scikit-learn's own and generated ones.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.automl import tables
from benchmarks.automl.tables import TABLES, Table, Task
from esteira.automl.api import METRIC
from esteira.automl.evaluate import Data, Fits, Watch, quiet_and_alike, side_by_side
from esteira.automl.kinds import KINDS, kind
from esteira.automl.kinds.base import Cost, Floats
from esteira.automl.prepare import Columns, Recipe
from esteira.automl.schedule import BOOSTING, MEMBER_SHARE, able, portfolio, rounds_allowed
from esteira.automl.scoring import scorer
from esteira.automl.splits import plan_folds
from esteira.features.contract import ContractOptions
from esteira.features.table import word_columns

if TYPE_CHECKING:
    import pandas as pd

ROW_US = 100.0
MOST_ROWS = 10_000
SEEDS = 3  # of compare.py's splits; rows that any of them tests on are left out
FOLDS = 2  # of five are scored on tables of ROWS_OF_ALL rows or more
ROWS_OF_ALL = 1500
LIMIT = 60.0  # seconds of a fit on one fold, after which rounds stop
# Random members of each kind's space, besides its defaults and what the portfolio of the day has.
DRAWN = {
    "lightgbm": 48, "xgboost": 28, "gradient_boosting": 12, "extra_trees": 14, "random_forest": 8, "linear": 16,
    "neural_network": 24, "nearest_neighbours": 12,
}  # fmt: skip
RECIPES: tuple[dict[str, Any], ...] = (
    {},
    {},
    {},
    {"target_encoding": True},
    {"ratios": 8},
    {"target_encoding": True, "frequency": True},
)


@dataclass(frozen=True)
class Config:
    """One configuration, for any table of a task."""

    kind: str
    params: dict[str, Any]
    recipe: dict[str, Any]

    @property
    def key(self) -> str:
        """A short name of its content."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Tried:
    """How a configuration did on a table.

    Attributes:
        held: predictions of the held rows of all scored folds, one after the other; None where it failed.
        cost: of the model of the first fold.
        seconds: of all scored folds together.
    """

    config: Config
    held: Floats | None
    cost: Cost
    seconds: float


@dataclass(frozen=True)
class Source:
    """A table to learn from, made when it is wanted."""

    name: str
    task: Task


def sources(task: str) -> list[Source]:
    """The tables of a task: public ones, then scikit-learn's own, then generated ones."""
    public = [Source(table.name, table.task) for table in TABLES.values() if table.task == task]
    made: dict[str, list[str]] = {
        "binary": ["breast_cancer", "made_few", "made_many", "made_noisy", "hastie", "rare"],
        "multiclass": ["digits", "wine", "made_three", "made_ten", "rings"],
        "regression": ["diabetes", "friedman1", "friedman2", "friedman3", "sparse", "straight"],
    }
    return public + [Source(name, task) for name in made[task]]  # type: ignore[arg-type]


def data(source: Source) -> Data:
    """Features and label of a table; the same on every machine."""
    if source.name in TABLES:
        return _public(source.name)
    x, y = _generated(source.name)
    classes = None if source.task == "regression" else int(y.max()) + 1
    return Data(
        np.ascontiguousarray(x, np.float32),
        y,
        source.task,
        classes,
        Columns(tuple(f"f{i}" for i in range(x.shape[1]))),
        1,
    )


def untested(known: Table, frame: "pd.DataFrame") -> NDArray[np.int64]:
    """Positions of the rows that no split of compare.py tests on, MOST_ROWS at most, in an order drawn once."""
    rows = np.arange(len(frame))
    numbered = frame.set_axis(rows, axis=0)
    for seed in tables.seeds(known, SEEDS):
        rows = np.setdiff1d(rows, tables.split(numbered, known, seed)[1].index.to_numpy())
    return np.random.default_rng(1).permutation(rows)[:MOST_ROWS]


def _public(name: str) -> Data:
    from esteira.automl import table

    known = TABLES[name]
    frame = tables.read(known)
    read = table.read(frame.iloc[untested(known, frame)], known.target, options=ContractOptions(task=known.task))
    featurizer = read.featurizer
    texts = word_columns(featurizer.names, featurizer.groups)
    columns = Columns(tuple(featurizer.names), tuple(featurizer.categorical), tuple(map(tuple, texts)))
    return Data(read.x, read.y, known.task, read.classes, columns, 1)


def _generated(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    from sklearn import datasets

    made = datasets.make_classification
    rng = np.random.default_rng(7)
    match name:
        case "breast_cancer" | "digits" | "wine" | "diabetes":
            x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        case "made_few":
            x, y = made(600, 12, n_informative=5, n_clusters_per_class=3, flip_y=0.05, random_state=1)
        case "made_many":
            x, y = made(4000, 60, n_informative=20, n_redundant=10, n_clusters_per_class=4, random_state=2)
        case "made_noisy":
            x, y = made(3000, 30, n_informative=6, n_clusters_per_class=6, flip_y=0.25, random_state=3)
        case "hastie":
            x, y = datasets.make_hastie_10_2(4000, random_state=4)
            y = (y > 0).astype(np.int64)
        case "rare":
            x, y = made(6000, 20, n_informative=8, weights=[0.96], class_sep=0.7, random_state=5)
        case "made_three":
            x, y = made(1200, 15, n_informative=8, n_classes=3, n_clusters_per_class=3, random_state=6)
        case "made_ten":
            x, y = made(5000, 25, n_informative=15, n_classes=10, n_clusters_per_class=2, random_state=7)
        case "rings":
            x, y = datasets.make_gaussian_quantiles(n_samples=2500, n_features=6, n_classes=5, random_state=8)
        case "friedman1" | "friedman2" | "friedman3":
            noise = {"friedman1": 1.0, "friedman2": 80.0, "friedman3": 0.1}[name]
            x, y = getattr(datasets, f"make_{name}")(n_samples=2000, noise=noise, random_state=9)
        case "sparse":
            x, y = datasets.make_sparse_uncorrelated(1500, 20, random_state=10)
        case "straight":
            x, y = datasets.make_regression(1000, 30, n_informative=12, noise=40.0, random_state=11)
        case _:
            raise ValueError(f"a generated table is one that `sources` names, but got {name!r}")
    if name not in {"digits", "wine", "breast_cancer"}:
        # Tables have gaps; generators do not.
        x = np.where(rng.random(x.shape) < 0.02, np.nan, x)
    return x, y


def configs(task: str, seed: int = 1) -> list[Config]:
    """Defaults, the portfolio of the day, then random members of the kinds' spaces for small and large tables by turns."""
    first = [Config(name, {}, {}) for name in DRAWN]
    first += [Config(name, dict(params), recipe.named()) for name, params, recipe in portfolio(task)]
    drawn: list[tuple[float, Config]] = []
    for name, count in DRAWN.items():
        rng = np.random.default_rng([seed, list(KINDS).index(name), sum(map(ord, task))])
        for number in range(count):
            space = kind(name).space(task, 1500 if number % 2 else 20_000, 20)
            params = {parameter: _draw(spec, rng) for parameter, spec in space.items()}
            recipe = RECIPES[int(rng.integers(len(RECIPES)))] if name in BOOSTING else {}
            # Shares of every kind come at the same pace, so that a run that is stopped has some of each.
            drawn.append(((number + 0.5) / count, Config(name, params, dict(recipe))))
    ordered = first + [config for _, config in sorted(drawn, key=lambda pair: pair[0])]
    return list({config.key: config for config in ordered}.values())


def _draw(spec: Sequence[Any], rng: np.random.Generator) -> Any:
    form, *ends = spec
    if form == "choice":
        return ends[0][int(rng.integers(len(ends[0])))]
    low, high = ends
    if form == "int":
        return int(rng.integers(low, high + 1))
    value = (
        float(np.exp(rng.uniform(np.log(low), np.log(high))))
        if form.startswith("log")
        else float(rng.uniform(low, high))
    )
    return round(value) if form == "log_int" else float(f"{value:.4g}")


def bounded(config: Config, classes: int | None) -> dict[str, Any]:
    """Its parameters with no more rounds than trees of 31 leaves would take of the row budget, whatever its own trees are."""
    rounds = kind(config.kind).rounds_name
    if config.kind not in BOOSTING or rounds is None:
        return config.params
    allowed = rounds_allowed(MEMBER_SHARE * ROW_US, 31, classes)
    return {**config.params, rounds: min(int(config.params.get(rounds, kind(config.kind).parameters[rounds])), allowed)}


class Experience:
    """What was tried so far, in a folder: `<task>.jsonl`, and below `held/` predictions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, task: str) -> dict[tuple[str, str], dict[str, Any]]:
        """(table, key of the configuration) -> what was written; a line cut off by a kill is passed over."""
        file = self.folder / f"{task}.jsonl"
        found = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            found[row["set"], row["key"]] = row
        return found

    def tried(self, task: str, source: str) -> dict[str, Tried]:
        """Key -> how that configuration did on a table."""
        found = {}
        for (name, key), row in self.rows(task).items():
            if name == source:
                held = None if row["why"] else np.load(self._held(source, key), allow_pickle=False).astype(np.float64)
                config = Config(row["kind"], row["params"], row["recipe"])
                found[key] = Tried(config, held, Cost(**row["cost"]), row["seconds"])
        return found

    def keep(self, task: str, source: str, tried: Tried, why: str) -> None:
        """Write one result: its predictions first, so that a line tells of nothing that is not there."""
        if tried.held is not None:
            file = self._held(source, tried.config.key)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{file.stem}.part.npy")
            np.save(part, tried.held.astype(np.float32), allow_pickle=False)
            os.replace(part, file)
        row = {
            "set": source, "key": tried.config.key, **asdict(tried.config), "cost": asdict(tried.cost),
            "seconds": round(tried.seconds, 4), "why": why,
        }  # fmt: skip
        with (self.folder / f"{task}.jsonl").open("a", encoding="utf-8") as file_:
            file_.write(json.dumps(row) + "\n")

    def _held(self, source: str, key: str) -> Path:
        return self.folder / "held" / source / f"{key}.npy"


def scored(source_data: Data) -> tuple[Fits, list[int]]:
    """The folds of a table, and which of them are scored."""
    folds = plan_folds(source_data.y, task=source_data.task, seed=1, count=5, repeats=1)
    count = len(folds.folds) if len(source_data.y) < ROWS_OF_ALL else min(FOLDS, len(folds.folds))
    return Fits(source_data, folds), list(range(count))


def truth(source_data: Data) -> NDArray[Any]:
    """Labels of the held rows of the scored folds, in the order of `Tried.held`."""
    fits, which = scored(source_data)
    return np.concatenate([source_data.y[fits.folds.folds[fold].held] for fold in which])


def attempt(fits: Fits, which: Sequence[int], config: Config) -> tuple[Tried, str]:
    """Fit a configuration on the scored folds; what it refuses or breaks at is told in words."""
    table = fits.data
    rows, features = table.x.shape
    why = kind(config.kind).refuses(table.task, rows, features, table.classes)
    recipe = able(Recipe.of(config.recipe), table.columns)
    held, cost, seconds = [], Cost(), 0.0
    for fold in which if not why else ():
        outcome = fits.fold(recipe, config.kind, bounded(config, table.classes), fold, watch=_clock(LIMIT))
        seconds += outcome.seconds
        if outcome.fitted is None:
            why = outcome.why
            break
        held.append(outcome.predicted)
        cost = outcome.fitted.cost() if fold == which[0] else cost
    return Tried(config, np.concatenate(held) if held and not why else None, cost, seconds), why


def _clock(seconds: float) -> Watch:
    until = time.monotonic() + seconds
    return lambda _progress, _loss: time.monotonic() < until


def gather(experience: Experience, task: str, *, most: int, until: float, only: Sequence[str] = ()) -> Iterator[str]:
    """Try what was not tried yet, configurations in order and all tables of each, two at once; yields what was done.

    Args:
        most: configurations at most.
        until: of `time.monotonic`; nothing is begun later.
        only: names of tables; empty means all.
    """
    experience.folder.mkdir(parents=True, exist_ok=True)
    done = set(experience.rows(task))
    chosen = [source for source in sources(task) if not only or source.name in only]
    loaded = {source.name: scored(data(source)) for source in chosen}
    wanted = configs(task)[:most]
    jobs = [(source, config) for config in wanted for source in loaded if (source, config.key) not in done]
    side = os.cpu_count() or 1
    with quiet_and_alike():
        for at in range(0, len(jobs), side):
            if time.monotonic() > until:
                return
            batch = jobs[at : at + side]
            for (source, config), (tried, why) in zip(
                batch, side_by_side(lambda job: attempt(*loaded[job[0]], job[1]), batch), strict=True
            ):
                experience.keep(task, source, tried, why)
                yield f"{at + len(batch)}/{len(jobs)} {task} {source} {config.kind}: {why or f'{tried.seconds:.1f} s'}"


def loss_of(source_data: Data, labels: NDArray[Any], predicted: Floats) -> float:
    """What the comparison calls loss: 1 - area, log loss or RMSE; infinite where undefined."""
    score = scorer(METRIC[source_data.task], source_data.task, source_data.classes)(labels, predicted)
    if not np.isfinite(score):
        return float("inf")
    return 1.0 - score if source_data.task == "binary" else -score
