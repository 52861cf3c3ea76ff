"""What to try before TPE proposes: the portfolio, made features; and how many trees a row's time allows. Pure functions."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from esteira.automl.cost import microseconds
from esteira.automl.kinds import KINDS, kind
from esteira.automl.kinds.base import Cost, Space
from esteira.automl.prepare import Columns, Recipe
from esteira.errors import ConfigError
from esteira.family import Candidate

BOOSTING = ("lightgbm", "xgboost", "gradient_boosting")
FORESTS = ("extra_trees", "random_forest")
MEMBER_SHARE, FOREST_SHARE = 0.7, 0.5
"""Of the row budget that one member may use up, so that others find room beside it; more trees are of less use to a forest."""
MANY_CLASSES = 8
"""More classes make boosting slow, a tree a class a round."""
MANY_ROWS = 10_000
"""From so many rows on, what takes long is tried after the rest."""
DEAR = 8.0
"""Times what the quickest LightGBM of a table takes, on the mean over the tables that the portfolio was learned from."""
FIRST_ENTRIES = 6
"""Entries before made features are tried; the others come after these."""
# Per node of a tree in the graph, and how much deeper than a balanced one a grown tree is.
NODE_BYTES, UNBALANCED = 16.0, 1.3

Entry = tuple[str, Mapping[str, Any], Recipe]


@cache
def portfolio(task: str) -> tuple[Entry, ...]:
    """Configurations known to do well on many tables, in the order of trying; see benchmarks/automl/portfolio.py."""
    return tuple((entry["kind"], entry["params"], Recipe.of(entry["recipe"])) for entry in _learned(task))


@cache
def _learned(task: str) -> tuple[Mapping[str, Any], ...]:
    text = resources.files("esteira.automl").joinpath("portfolio.json").read_text(encoding="utf-8")
    return tuple(json.loads(text).get(task, ()))


def first_entries(
    candidates: Sequence[Candidate],
    task: str,
    columns: Columns,
    classes: int | None = None,
    *,
    trials: int = 1000,
    rows: int = 0,
) -> list[Entry]:
    """What to try first: the defaults that a family gives, and the portfolio's entries of kinds that it only names.

    A recipe that makes nothing of these columns is left out, and so is an entry that is then there twice.
    """
    bare = {candidate.kind for candidate in candidates if not candidate.defaults}
    entries: list[Entry] = [
        (candidate.kind, candidate.defaults, Recipe()) for candidate in candidates if candidate.defaults
    ]
    known = portfolio(task)
    if rows >= MANY_ROWS:
        # What takes minutes there comes when something good is known.
        dear = [entry["seconds"] > DEAR for entry in _learned(task)]
        known = tuple(known[at] for at in sorted(range(len(known)), key=dear.__getitem__))
    if classes is not None and classes > MANY_CLASSES:
        # Boosting grows a tree a class a round: slow to fit, and few rounds fit into a row. Others come first.
        known = tuple(sorted(known, key=lambda entry: entry[0] in BOOSTING and entry[1].get("multi_strategy") is None))
    entries += [(name, params, able(recipe, columns)) for name, params, recipe in known if name in bare]
    entries += [(name, {}, Recipe()) for name in KINDS if name in bare - {entry[0] for entry in known}]
    kept: list[Entry] = []
    for entry in entries:
        if entry not in kept:
            kept.append(entry)
    # The trivial model first: every score is told beside it; then one that is quick to fit, for a search that is cut short.
    quick = [next((entry for entry in kept if entry[0] == name), None) for name in ("constant", "linear")]
    first = [entry for entry in quick if entry is not None]
    if trials == 1 and len(kept) > 1:
        # Of one trial only, it is not the trivial model that people want.
        first = [entry for entry in first if entry[0] != "constant"]
        kept = [entry for entry in kept if entry[0] != "constant"]
    ordered = first + [entry for entry in kept if entry not in first]
    boosted = next((entry for entry in ordered if entry[0] in BOOSTING), None)
    if boosted is not None and boosted not in ordered[:FIRST_ENTRIES] and (classes or 0) <= MANY_CLASSES:
        # Made features are tried on one.
        ordered.remove(boosted)
        ordered.insert(len(first), boosted)
    return ordered


def able(recipe: Recipe, columns: Columns) -> Recipe:
    """A recipe without the parts that these columns have nothing for."""
    numbers = len(columns.names) - len(columns.categorical) - sum(map(len, columns.texts))
    return Recipe(
        target_encoding=recipe.target_encoding and bool(columns.categorical),
        frequency=recipe.frequency and bool(columns.categorical),
        ratios=recipe.ratios if numbers >= 2 else 0,
        text=recipe.text if columns.texts else 0,
        drop=recipe.drop and len(columns.names) >= 20,
    )


def recipes(columns: Columns) -> list[Recipe]:
    """The parts worth trying one at a time on these columns."""
    parts = (Recipe(ratios=15), Recipe(target_encoding=True, frequency=True), Recipe(text=16), Recipe(drop=True))
    return [able(part, columns) for part in parts if able(part, columns) != Recipe()]


def joined(parts: Sequence[Recipe]) -> Recipe:
    """All parts together."""
    whole: dict[str, Any] = {}
    for part in parts:
        whole |= part.named()
    return Recipe.of(whole)


def helps(with_it: Mapping[int, float], without: Mapping[int, float]) -> bool:
    """Whether a part raised the score by more than one standard error of the differences, of the folds where both have one."""
    gains = [with_it[fold] - without[fold] for fold in sorted(with_it.keys() & without.keys())]
    gains = [gain for gain in gains if math.isfinite(gain)]
    if not gains:
        return False
    mean = math.fsum(gains) / len(gains)
    if len(gains) < 2:
        return mean > 0
    spread = math.sqrt(math.fsum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1) / len(gains))
    return mean > spread


def capped(name: str, params: Mapping[str, Any], row_us: float, rows: int, classes: int | None) -> Mapping[str, Any]:
    """Parameters with no more trees than the row budget allows for trees of this size.

    Args:
        row_us: microseconds that an answer of the whole model may cost.
        rows: of the fit; few rows make no large trees.
    """
    forest = name in FORESTS
    if name not in BOOSTING and not forest:
        return params
    counts = kind(name).rounds_name or "n_estimators"
    full = {**kind(name).parameters, **params}
    sizes = [int(full[word]) for word in ("num_leaves", "max_leaf_nodes") if full.get(word)]
    if (full.get("max_depth") or 0) > 0:
        sizes.append(2 ** min(30, int(full["max_depth"])))
    leaves = min([*sizes, max(4, rows // (2 if forest else 10))])
    one_tree = forest or full.get("multi_strategy") == "multi_output_tree"
    share = FOREST_SHARE if forest else MEMBER_SHARE
    allowed = rounds_allowed(share * row_us, leaves, None if one_tree else classes)
    return {**params, counts: min(int(full[counts]), allowed)}


def rounds_allowed(row_us: float, leaves: int, classes: int | None) -> int:
    """Trees, or rounds of a tree a class, whose answer takes so many microseconds; at least 20."""
    trees = classes if classes is not None and classes > 2 else 1
    depth = UNBALANCED * math.log2(max(2, leaves))

    def spent(rounds: int) -> float:
        visits = rounds * trees * depth
        return microseconds(Cost(visits=visits, bytes=int(rounds * trees * 2 * leaves * NODE_BYTES)))

    low, high = 20, 20_000
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if spent(middle) <= row_us else (low, middle - 1)
    return low


def faster(params: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The same with twice the learning rate, for a boosting that ran out of the rounds it was allowed; None past 0.3."""
    rate = float(params.get("learning_rate", 0.1)) * 2
    return {**params, "learning_rate": round(rate, 6)} if rate <= 0.3 else None


def spaces(candidates: Sequence[Candidate], task: str, rows: int, features: int) -> dict[str, Space]:
    """Of each kind, what is searched: what the family says, else what the kind offers.

    Raises:
        ConfigError: a family's space has a parameter without a default.
    """
    found: dict[str, Space] = {}
    for candidate in candidates:
        missing = sorted(set(candidate.space) - set(candidate.defaults))
        if candidate.defaults and missing:
            raise ConfigError(
                f"every parameter of a space has a default, but {candidate.kind}.{missing[0]} has none",
                code="no_default", where=f"candidate {candidate.kind}", cure="add it to the candidate's defaults",
            )  # fmt: skip
        space = candidate.space if candidate.defaults else kind(candidate.kind).space(task, rows, features)
        if space:
            found[candidate.kind] = space
    return found


def standing(name: str, space: Space, features: int) -> dict[str, Any]:
    """Where the kind's defaults stand in a space, so that a trial that leaves a parameter out has its place there."""
    found: dict[str, Any] = {}
    for parameter, spec in space.items():
        value = kind(name).parameters.get(parameter)
        if value == "sqrt":
            value = features**-0.5
        elif value is None:
            value = spec[1][0] if spec[0] == "choice" else spec[1]
        found[parameter] = value
    return found
