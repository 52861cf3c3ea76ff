"""The page of a search, put together from what was learned from and what was found. Text out, no file."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira import slices
from esteira.automl.evaluate import Data, quiet_and_alike
from esteira.automl.importance import parameters
from esteira.automl.look import Look, look
from esteira.automl.page import Record, render
from esteira.automl.prepare import Recipe
from esteira.automl.scoring import scorer
from esteira.automl.splits import Folds
from esteira.features.answers import said
from esteira.features.decode import json_rows
from esteira.features.metrics import HIGHER_IS_BETTER, Classified, Estimated, label_text, statistic

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from esteira.automl.engine import Result
    from esteira.features.contract import TableContract

MOST_ROWS = 20_000
"""Rows that segments are made of; of more rows the first so many, in the order of the table."""


def page(
    contract: "TableContract",
    rows: "pd.DataFrame",
    y: "NDArray[Any]",
    features: int,
    found: "Result",
    *,
    title: str,
    seed: int,
    seconds: float | None = None,
    findings: Sequence[str] = (),
    closer: Look | None = None,
) -> str:
    """The page as HTML text.

    Args:
        contract: of the rows.
        rows: typed training rows.
        y: class codes or values of them.
        features: how many the search was given.
        found: what it found.
        title: the line's or the table's name.
        seed: of resamples.
        seconds: of the search; None leaves all wall times out, so that equal searches have equal pages.
        findings: what the checks warned of, in words.
        closer: what `closer_look` saw; without it the page has no learning curve, and importances of features only.
    """
    seen, judged = judged_rows(contract, y, found)
    index = np.flatnonzero(seen)[:MOST_ROWS]
    few = judged.take(np.arange(len(index)))
    overall = float(statistic(found.metric, few)(np.ones((1, len(few))))[0]) if len(few) else None
    cuts = slices.cut(contract.columns, json_rows(rows.iloc[index], contract))
    trials = [row for row in found.leaderboard if row["kind"] != "blend"]
    record = Record(
        title=title,
        target=contract.target.name,
        task=contract.target.task,
        metric=found.metric,
        leaderboard=[
            {**row, "fit_seconds": row["fit_seconds"] if seconds is not None else 0.0} for row in found.leaderboard
        ],
        summary=found.record,
        rows=len(y),
        features=features,
        seconds=seconds,
        truth=y,
        out_of_fold=found.out_of_fold,
        uncalibrated=found.uncalibrated,
        classes=tuple(map(label_text, contract.target.classes or ())),
        threshold=found.threshold,
        permutation=found.record.get("importances") or () if closer is None else closer.columns,
        learning=() if closer is None else closer.learning,
        parameters=parameters(trials, higher_is_better=HIGHER_IS_BETTER[found.metric]),
        slices=slices.score(cuts, few, found.metric, overall, seed=seed),
        overall=overall,
        findings=findings,
    )
    return render(record)


def closer_look(found: "Result", data: Data, folds: Folds, groups: Mapping[str, Sequence[int]]) -> Look:
    """At the heaviest member, which stands for the blend: it is fitted again on growing parts of a fold.

    Args:
        found: what the search found.
        data, folds: of the search.
        groups: source column -> positions of its features.
    """
    row = heaviest(found)
    with quiet_and_alike():
        return look(
            data,
            folds,
            scorer(found.metric, data.task, data.classes),
            groups,
            recipe=Recipe.of(row["recipe"]),
            kind=row["kind"],
            params=row["params"],
        )


def heaviest(found: "Result") -> Mapping[str, Any]:
    """The leaderboard's row of the member that weighs most."""
    members = [row for row in found.leaderboard if row["weight"] and row["kind"] != "blend"]
    return max(members, key=lambda row: row["weight"])


def judged_rows(
    contract: "TableContract", y: "NDArray[Any]", found: "Result"
) -> tuple["NDArray[np.bool_]", Classified | Estimated]:
    """Which training rows some fold held back, and what was said of these by models that had not seen them.

    Args:
        contract: of the rows.
        y: class codes or values, shape (rows,).
        found: what the search found.
    """
    seen = np.asarray(np.isfinite(found.out_of_fold.reshape(len(y), -1)).all(axis=1), dtype=np.bool_)
    truth, predicted = y[seen], found.out_of_fold[seen]
    classes = contract.target.classes
    if classes is None:
        return seen, Estimated(truth.astype(np.float64), predicted)
    post: Mapping[str, Any] = {"threshold": found.threshold}
    return seen, Classified(truth, predicted, said(predicted, post), tuple(map(label_text, classes)))
