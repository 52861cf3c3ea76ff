"""A recipe fitted on rows: which given features stay, which are made, the same natively and in the graph to the last bit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds.base import Cost, Features
from esteira.automl.prepare import categories, ratios, text
from esteira.automl.prepare.recipe import Columns, Recipe
from esteira.automl.prepare.redundant import redundant
from esteira.onnx.graph import Graph

CHUNK = 8192  # rows copied at a time, so that a table is held once more and not twice


class _Part(Protocol):
    """Features made of x; each module beside this one has one."""

    @property
    def width(self) -> int: ...

    def apply(self, x: Features, out: Features) -> None: ...

    def draw(self, graph: Graph, x: str, features: int) -> str: ...

    def cost(self) -> Cost: ...


@dataclass(frozen=True)
class Fitted:
    """A recipe, fitted; see `recipe.Preparation`.

    Attributes:
        features: width of the x that it takes.
        kept: positions in x of the given features that stay, rising.
        parts: what makes the others, in the order of their features.
        dropped: name -> why, of the given features that were left out.
    """

    recipe: Recipe
    columns: Columns
    catalogue: Sequence[Mapping[str, Any]]
    features: int
    kept: tuple[int, ...]
    parts: tuple[_Part, ...]
    dropped: Mapping[str, str]

    def apply(self, x: Features) -> Features:
        """The given features that stay, then the made ones; x itself when that is the same."""
        if not self.parts and len(self.kept) == self.features:
            return x
        out, at = np.empty((len(x), len(self.columns.names)), np.float32), len(self.kept)
        for start in range(0, len(x), CHUNK):
            out[start : start + CHUNK, :at] = x[start : start + CHUNK][:, self.kept]
        for part in self.parts:
            part.apply(x, out[:, at : at + part.width])
            at += part.width
        return out

    def draw(self, graph: Graph, x: str) -> str:
        """The same, bit for bit, of the value x (rows, features)."""
        values = [graph.columns(x, self.kept, self.features)] if self.kept else []
        values += [part.draw(graph, x, self.features) for part in self.parts]
        return values[0] if len(values) == 1 else graph.add("Concat", *values, axis=1)

    def cost(self) -> Cost:
        """What one answer costs: the parts, and putting them side by side."""
        cost = Cost(nodes=bool(self.parts) + (len(self.kept) < self.features))
        for part in self.parts:
            cost += part.cost()
        return cost


def fit(
    recipe: Recipe,
    x: Features,
    y: NDArray[Any] | None,
    *,
    columns: Columns,
    classes: int | None,
    seed: int,
) -> tuple[Fitted, Features]:
    """Fit a recipe.

    Args:
        x: the rows of the fit, (rows, len(columns.names)).
        y: class codes, or values when `classes` is None; None where there is no label, and then nothing is made of it.
        columns: what is known of the features of x.

    Returns:
        The fitted preparation, and the features of these very rows: as `apply` gives them, but for target encodings,
        which come from folds without the row.
    """
    dropped = redundant(x, columns.names, columns.categorical, seed=seed) if recipe.drop else {}
    if len(dropped) == x.shape[1]:
        dropped = {}  # nothing would be left; what cannot tell does no harm
    kept = tuple(column for column in range(x.shape[1]) if column not in dropped)
    coded = [column for column in columns.categorical if column not in dropped]
    words = {word for one in columns.texts for word in one}
    numbers = [column for column in kept if column not in words and column not in set(coded)]
    names = columns.names
    parts: list[_Part] = []
    made: list[dict[str, Any]] = []
    encoded = categories.fit(
        x, y, coded, classes=classes, seed=seed, target_encoding=recipe.target_encoding, frequency=recipe.frequency
    )
    if encoded is not None:
        parts.append(encoded[0])
        width = encoded[0].table.shape[1]
        for column in coded:
            for target in range(width - recipe.frequency):
                of = f".{target}" if width - recipe.frequency > 1 else ""
                made.append(_entry(f"{names[column]}.target{of}", "target_encoding", [names[column]]))
            if recipe.frequency:
                made.append(_entry(f"{names[column]}.frequency", "frequency", [names[column]]))
    found = ratios.fit(x, y, numbers, most=recipe.ratios, classes=classes, seed=seed)
    if found is not None:
        parts.append(found)
        for over, under in zip(found.over, found.under, strict=True):
            made.append(_entry(f"{names[over]} / {names[under]}", "ratio", [names[over], names[under]]))
    for one in columns.texts:
        components = text.fit(x, one, components=recipe.text) if recipe.text and one else None
        if components is not None:
            parts.append(components)
            base = names[one[0]].partition(".has.")[0]
            made += [
                _entry(f"{base}.topic{number}", "tfidf_svd", [names[word] for word in one])
                for number in range(components.width)
            ]
    place = {column: at for at, column in enumerate(kept)}
    after = Columns(
        (*(names[column] for column in kept), *(entry["name"] for entry in made)),
        tuple(place[column] for column in coded),
        tuple(tuple(place[word] for word in one if word in place) for one in columns.texts),
    )
    fitted = Fitted(
        recipe, after, made, x.shape[1], kept, tuple(parts), {names[column]: why for column, why in dropped.items()}
    )
    features = fitted.apply(x)
    if encoded is not None:
        features[:, len(kept) : len(kept) + encoded[0].width] = encoded[1]
    for entry, values in zip(made, features[:, len(kept) :].T, strict=True):
        entry.update(_statistics(values, None if y is None or (classes or 0) > 2 else y))
    return fitted, features


def _entry(name: str, transformation: str, made_of: Sequence[str]) -> dict[str, Any]:
    return {"name": name, "transformation": transformation, "made_of": list(made_of)}


def _statistics(values: Features, y: NDArray[Any] | None) -> dict[str, float | None]:
    """Of the rows of the fit: share missing, mean, deviation, Pearson correlation with the label."""
    present = ~np.isnan(values)
    shown = values[present].astype(np.float64)
    if not len(shown):
        return {"missing": 1.0, "mean": None, "deviation": None, "correlation": None}
    centred = shown - shown.mean()
    correlation = None
    if y is not None:
        truth = y[present].astype(np.float64)
        truth = truth - truth.mean()
        size = float(np.sqrt((centred @ centred) * (truth @ truth)))
        correlation = float(centred @ truth) / size if size > 0 else None
    return {
        "missing": 1 - float(present.mean()),
        "mean": float(shown.mean()),
        "deviation": float(shown.std()),
        "correlation": correlation,
    }
