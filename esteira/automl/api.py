"""`fit(frame, target)`: the best model of a table within seconds or trials, ready to predict and to be exported as a bundle.

It reads no files, and writes only where `export` is told to.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira.automl import bundle_files, table
from esteira.automl.table import FAMILY, Table
from esteira.checks import require_target
from esteira.errors import ConfigError
from esteira.features.answers import said
from esteira.features.contract import ColumnKind, ContractOptions, Task
from esteira.features.labels import encode_labels
from esteira.features.metrics import label_text
from esteira.features.table import word_columns

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from esteira.automl.engine import Result

METRIC: Mapping[str, str] = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}
"""What a search goes by when nobody says: the measures of the AMLB benchmark."""
SECONDS = 60.0
MAX_ROW_US = 100.0
MAX_BYTES = 50_000_000
MAX_TRIALS = 10_000
_CUT = "no model was tried on all folds in the time given, so its score is of one fold only: give more seconds"
_TRIVIAL = (
    "nothing but the constant was fitted, so it answers every row alike: give more seconds, or let more kinds enter"
)
_LOOK = 4.0  # fits on one core that a learning curve and its importances take, about
Progress = Callable[[int, int, Mapping[str, Any]], None]


@dataclass(frozen=True)
class AutoML:
    """A model that a search found. Predicts natively; what `export` writes answers the same.

    Attributes:
        table: what it learned from.
        found: what the search found.
        line: what its bundle will be called.
        seed: of the search.
        seconds: that reading, searching and fitting took.
        source: name and hash of the rows, for the bundle.
    """

    table: Table = field(repr=False)
    found: "Result" = field(repr=False)
    line: str
    seed: int
    seconds: float
    source: Mapping[str, str] = field(repr=False)

    @property
    def task(self) -> Task:
        """binary, multiclass or regression."""
        return self.table.contract.target.task

    @property
    def metric(self) -> str:
        """The score that the search went by."""
        return self.found.metric

    @property
    def best(self) -> Mapping[str, Any]:
        """`{"kind", "params", "score"}` of the winner; the score is of rows it did not see, in the metric's own direction."""
        return self.found.best

    @property
    def leaderboard(self) -> list[dict[str, Any]]:
        """One dict a trial, best first."""
        return [dict(row) for row in self.found.leaderboard]

    @property
    def warnings(self) -> list[str]:
        """What people should know of the table, near-copies of the label first; before these, of the search."""
        said_of = [finding.told for finding in self.table.findings]
        board = self.found.leaderboard
        if any(row["weight"] and row["state"] == "pruned" for row in board):
            said_of.insert(0, _CUT)
        if not any(row["kind"] != "constant" and row["folds"] for row in board):
            said_of.insert(0, _TRIVIAL)
        return said_of

    @property
    def classes(self) -> "NDArray[Any] | None":
        """The labels in their own type, in the order of `predict_proba`'s columns; None for regression."""
        classes = self.table.contract.target.classes
        return None if classes is None else np.array(classes)

    def predict(self, frame: "pd.DataFrame") -> "NDArray[Any]":
        """Labels in their own type, or values; shape (rows,).

        Raises:
            DataError: a required column is absent, or a cell cannot be read.
        """
        classes = self.classes
        if classes is None:
            return self._predicted(frame)
        labels: NDArray[Any] = classes[self.predict_codes(frame)]
        return labels

    def predict_codes(self, frame: "pd.DataFrame") -> "NDArray[np.int64]":
        """Positions in `classes`, shape (rows,): the likeliest class, or by the model's threshold."""
        return said(self.predict_proba(frame), {"threshold": self.found.threshold})

    def predict_proba(self, frame: "pd.DataFrame") -> "NDArray[np.float64]":
        """Probabilities of shape (rows, classes), in the order of `classes`.

        Raises:
            ConfigError: this is a regression.
            DataError: as for `predict`.
        """
        if self.task == "regression":
            raise ConfigError(
                "probabilities are of classes, but this model answers a number",
                code="no_probabilities", where="predict_proba", cure="call predict",
            )  # fmt: skip
        return self._predicted(frame)

    def score(self, frame: "pd.DataFrame", truths: Any = None, *, metric: str = "") -> float:
        """A score of these rows, higher is better whatever the metric's own direction, as scikit-learn's scorers have it.

        Args:
            frame: rows.
            truths: their labels; by default the frame's own column of that name.
            metric: a score of the task; by default the one that the search went by.

        Raises:
            DataError: there are no labels, or one is no class of the model.
            ConfigError: no such metric.
        """
        from esteira.automl.scoring import scorer

        target = self.table.contract.target
        if truths is None:
            known = table.plain(frame)
            require_target(list(known.columns), target.name, "score")
            truths = known[target.name]
        y = encode_labels(truths, target)
        judge = scorer(metric or self.metric, self.task, self.table.classes, threshold=self.found.threshold)
        return judge(y, self._predicted(frame))

    def export(self, path: str | Path, *, force: bool = False) -> str:
        """Write the bundle into a new or empty folder, whole or not at all.

        Args:
            path: the folder.
            force: whether a bundle that lies there may be replaced.

        Returns:
            The bundle_id.

        Raises:
            Refused: something else lies there.
            OutsideError: the disk is full, or the folder cannot be written.
        """
        files, manifest = bundle_files.sealed_files(
            self.table, self.found, line=self.line, seed=self.seed, source=self.source
        )
        return bundle_files.write(Path(path), files, manifest, force=force)

    def page(self, *, within: float | None = None) -> str:
        """The search as one HTML page: what was tried, what won and why, where it errs, whether more rows would help.

        Args:
            within: seconds that the learning curve may take; it is left out where its fits are expected to take longer.
        """
        from esteira.automl.question import data_of
        from esteira.automl.search_page import closer_look, heaviest, page

        read, row = self.table, heaviest(self.found)
        closer = None
        if within is None or _LOOK * row["fit_seconds"] / max(1, len(row["folds"])) <= within:
            told = words(read, self.seed)
            data = data_of(read.x, read.y, **told, seed=self.seed)
            closer = closer_look(self.found, data, told["folds"], read.featurizer.groups)
        return page(
            read.contract, read.rows, read.y, read.x.shape[1], self.found,
            title=self.line, seconds=self.seconds, seed=self.seed, findings=self.warnings, closer=closer,
        )  # fmt: skip

    def _predicted(self, frame: "pd.DataFrame") -> "NDArray[np.float64]":
        return self.found.predict(self.table.featurizer.frame(table.plain(frame)))


def fit(
    frame: "pd.DataFrame",
    target: str,
    *,
    seconds: float | None = None,
    trials: int | None = None,
    metric: str = "",
    seed: int = 42,
    task: Task | None = None,
    column_kinds: Mapping[str, ColumnKind] | None = None,
    drop: Sequence[str] = (),
    time_column: str | None = None,
    group_column: str | None = None,
    kinds: Sequence[str] = (),
    max_row_us: float = MAX_ROW_US,
    max_bytes: int = MAX_BYTES,
    storage: str = "",
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    line: str = FAMILY,
    source: Mapping[str, str] | None = None,
    nested: Sequence[str] = (),
    began: float | None = None,
) -> AutoML:
    """Search for the best model of a table.

    Args:
        frame: rows, the label among them; not changed.
        target: name of the label column.
        seconds: of wall time from `began` on, above 0; 60 where neither it nor `trials` is given. Without it, the same
            arguments give the same model on every machine.
        trials: how many parameter sets are tried at most.
        metric: a score of the task; by default roc_auc, log_loss or rmse.
        seed: of every random choice.
        task: binary, multiclass or regression, where the labels do not say.
        column_kinds: column -> kind, where a person knows better than the cells.
        drop: columns to leave out.
        time_column: rows are held back by it, the later ones; it stays a feature.
        group_column: rows of one value are held back together; it is no feature.
        kinds: kinds of estimators to try; empty means all.
        max_row_us: what one answer may cost, in microseconds, by the cost model.
        max_bytes: what the graph may weigh.
        storage: where trials are kept, so that a search that was killed goes on: a journal's path, or an address of
            PostgreSQL. Empty keeps them in memory.
        stop: asked between trials; True ends the search with the best so far.
        progress: called after every trial with (done, trials, leaderboard row, with its `metric` and the `best` score so far).
        line: what the bundle will be called: `FAMILY` or `FAMILY@NAME`.
        source: `name`, `source` and `content_hash` of the rows; by default those of the frame.
        nested: columns whose cells are JSON text of nested values.
        began: `time.perf_counter()` from which the seconds count; by default now.

    Raises:
        ConfigError: a budget that is not above 0, an unknown metric, kind or column.
        DataError: the table cannot be learned from; see `esteira.automl.table.read`.
        OutsideError: the storage does not answer.
    """
    from esteira.automl.question import of_kinds

    began = time.perf_counter() if began is None else began
    check_budget(seconds, trials, max_row_us)
    if seconds is None and trials is None:
        seconds = SECONDS
    options = ContractOptions(
        kinds=column_kinds or {}, task=task, drop=tuple(drop), time_column=time_column, group_column=group_column
    )
    rows = table.plain(frame)
    read = table.read(rows, target, line=line, options=options, nested=nested)
    wanted = metric or METRIC[read.contract.target.task]
    found = _search(
        read,
        metric=wanted,
        seconds=None if seconds is None else max(seconds - (time.perf_counter() - began), 0.1),
        trials=trials,
        seed=seed,
        candidates=of_kinds(read.family.candidates(read.contract.target.task, len(read.y)), kinds, where="kinds"),
        max_row_us=max_row_us,
        max_bytes=max_bytes,
        storage=storage,
        stop=stop,
        progress=None if progress is None else _with_metric(progress, wanted),
    )
    known = source or {"name": "frame", "source": "", "content_hash": _hash(rows)}
    return AutoML(read, found, line, seed, time.perf_counter() - began, known)


def check_budget(seconds: float | None, trials: int | None, max_row_us: float = MAX_ROW_US) -> None:
    """Refuse budgets within which nothing can be found.

    Raises:
        ConfigError: one that is not a finite number above 0.
    """
    for name, value, unit in (("seconds", seconds, " s"), ("trials", trials, ""), ("max_row_us", max_row_us, " us")):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(
                f"a budget is a finite number above 0, but {name} is {value}{unit}",
                code="bad_budget", where=name, cure="give a number above 0, such as 60 seconds",
            )  # fmt: skip


def _search(read: Table, *, trials: int | None, **told: Any) -> "Result":
    from esteira.automl.engine import search

    return search(read.x, read.y, **words(read, told["seed"]), trials=trials or MAX_TRIALS, **told)


def words(read: Table, seed: int) -> dict[str, Any]:
    """What a search is told of a table; its folds depend on the seed."""
    from esteira.automl.splits import plan_folds

    task = read.contract.target.task
    return {
        "task": task,
        "categorical": read.featurizer.categorical,
        "classes": read.classes,
        "names": read.featurizer.names,
        "texts": word_columns(read.featurizer.names, read.featurizer.groups),
        "folds": plan_folds(read.y, task=task, seed=seed, groups=read.groups, times=read.times, together=read.copies),
    }


def _with_metric(progress: Progress, metric: str) -> Progress:
    return lambda done, trials, row: progress(done, trials, {"metric": metric, **row})


def _hash(frame: "pd.DataFrame") -> str:
    """SHA-256 of the cells and their names, the same in every process."""
    import pandas as pd

    digest = sha256("\0".join(map(label_text, frame.columns)).encode())
    digest.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return digest.hexdigest()
