"""Ridge and logistic regression on prepared columns, with linear splines and products of the strongest pairs at will."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from esteira.automl.kinds import design
from esteira.automl.kinds.base import Base, Cost, Features, Floats, Held, Space
from esteira.automl.kinds.constant import Constant
from esteira.onnx.graph import Graph, sigmoid, softmax

WIDEST = 1200  # columns of the design: the normal equations take its square
CELLS = 6_000_000  # doubles of the design; of a table with more, so many rows are taken that it fits
SAMPLE = 5000  # rows that knots and pairs are chosen on


class LinearModel(Base):
    """Ridge, or logistic regression.

    `alpha` is the penalty; `knots` are places at each numeric column's quantiles where its slope may change; `crosses` is how
    many products of two columns are added, those that tell most of what the columns by themselves leave; `log` first
    takes the signed logarithm of the numbers, for long tails.
    """

    parameters: ClassVar[dict[str, Any]] = {"alpha": 1.0, "knots": 4, "crosses": 0, "log": False}

    @classmethod
    def space(cls, task: str, rows: int, features: int) -> Space:
        """All of them; few knots where there are few rows to place them by."""
        return {
            "alpha": ("log", 1e-3, 1e3),
            "knots": ("int", 0, 8 if rows >= 1000 else 4),
            "crosses": ("choice", [0, 0, 16, 64]),
            "log": ("choice", [False, True]),
        }

    def fit(self, x: Features, y: NDArray[Any], *, held: Held | None = None) -> None:
        """Fit the preparation and the coefficients."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        self.features = x.shape[1]
        self.one: Constant | None = None
        if self.classes is not None:
            codes = self._learn_classes(y)
            if len(self.present) == 1:  # nothing to tell apart
                self.one = Constant(classes=self.classes, categorical=(), seed=0)
                self.one.fit(x, y)
                return
        # One thread, because the order of a sum, and with it its last bit, depends on the number of them.
        with threadpool_limits(1):
            self._prepare(x, np.asarray(y, np.float64) if self.classes is None else codes)
            columns = self.design.width + len(self.knots) + len(self.pairs)
            some = np.arange(len(x))
            if len(x) * columns > CELLS:
                some = np.random.default_rng(self.seed).permutation(len(x))[: CELLS // columns]
                # A row of each class stays, however rare.
                firsts = np.unique(codes, return_index=True)[1] if self.classes is not None else some[:1]
                some = np.union1d(some, firsts).astype(np.int64)
            made = self._expand(x[some])
            if self.classes is None:
                self.weights, self.intercept = self._ridge(made, np.asarray(y, np.float64)[some])
            else:
                self.weights, self.intercept = self._logistic(made, codes[some])

    def _prepare(self, x: Features, targets: NDArray[Any]) -> None:
        """Choose columns, knots and products; `targets` are codes of the classes that occurred, or values."""
        sample = np.random.default_rng(self.seed).permutation(len(x))[:SAMPLE]
        room = min(WIDEST, max(64, 5 * CELLS // len(x)))
        bent = bool(self.params["log"])
        self.design = design.fit(
            x, self.categorical, robust=bent, beyond=design.FAR if bent else design.BEYOND, rarest=3, columns=room // 2
        )
        plain = self.design.apply(x[sample])
        numbers = self._bend(plain[:, : len(self.design.numeric)])
        self.knots: list[tuple[int, float]] = []
        count = int(self.params["knots"])
        if count:
            most = max(0, room - self.design.width) // max(1, count)
            for at in range(min(numbers.shape[1], most)):
                places = np.quantile(numbers[:, at], np.arange(1, count + 1) / (count + 1))
                inside = (places > numbers[:, at].min()) & (places < numbers[:, at].max())
                self.knots += [(at, float(place)) for place in np.unique(places[inside])]
        self.pairs: tuple[tuple[int, int], ...] = ()
        if self.params["crosses"]:
            plain[:, : len(self.design.numeric)] = numbers
            told = targets[sample] if self.classes is None else np.eye(len(self.present))[targets[sample]]
            self.pairs = _strongest_pairs(plain, told, int(self.params["crosses"]))

    def _bend(self, numbers: Floats) -> Floats:
        return np.sign(numbers) * np.log(1.0 + np.abs(numbers)) if self.params["log"] else numbers

    def _expand(self, x: Features) -> Floats:
        """The design, the hinges, the products: (rows, columns)."""
        plain = self.design.apply(x)
        count = len(self.design.numeric)
        plain[:, :count] = self._bend(plain[:, :count])
        parts = [plain]
        if self.knots:
            columns, places = zip(*self.knots, strict=True)
            parts.append(np.maximum(plain[:, columns] - np.array(places), 0.0))
        if self.pairs:
            left, right = zip(*self.pairs, strict=True)
            parts.append(plain[:, left] * plain[:, right])
        return np.hstack(parts) if len(parts) > 1 else plain

    def _ridge(self, made: Floats, y: Floats) -> tuple[Floats, Floats]:
        from sklearn.linear_model import Ridge

        offset, scale = y.mean(), y.std() or 1.0
        model = Ridge(alpha=float(self.params["alpha"]), solver="cholesky").fit(made, (y - offset) / scale)
        return model.coef_[:, None] * scale, np.atleast_1d(model.intercept_) * scale + offset

    def _logistic(self, made: Floats, codes: NDArray[np.int64]) -> tuple[Floats, Floats]:
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        # Newton steps are few but cost a Hessian of (columns x classes) squared.
        small = made.shape[1] * (1 if len(self.present) == 2 else len(self.present)) <= 400
        model = LogisticRegression(
            C=1.0 / float(self.params["alpha"]), solver="newton-cholesky" if small else "lbfgs", max_iter=200, tol=1e-3
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the last step is an answer too
            model.fit(made, codes)
        return model.coef_.T.astype(np.float64), model.intercept_.astype(np.float64)

    def predict(self, x: Features) -> Floats:
        """Probabilities (rows, classes), or values (rows,)."""
        if self.one is not None:
            return self.one.predict(x)
        return design.by_blocks(x, self._answer)

    def _answer(self, x: Features) -> Floats:
        margin = self._expand(x) @ self.weights + self.intercept
        if self.classes is None:
            return margin[:, 0]
        return self._spread(sigmoid(margin[:, 0]) if margin.shape[1] == 1 else softmax(margin))

    def draw(self, graph: Graph, x: str) -> str:
        """The same, one matrix product behind the design."""
        if self.one is not None:
            return self.one.draw(graph, x)
        numbers, others = self.design.draw(graph, x)
        if numbers and self.params["log"]:
            size = graph.add("Log", graph.add("Add", graph.add("Abs", numbers), graph.scalar(1.0, np.float64)))
            numbers = graph.add("Mul", graph.add("Sign", numbers), size)
        parts = [part for part in (numbers, others) if part]
        whole = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
        made = [whole]
        if self.knots:
            columns, places = zip(*self.knots, strict=True)
            beyond = graph.add(
                "Sub",
                graph.columns(numbers, columns, len(self.design.numeric)),
                graph.constant(places, np.float64),
            )
            made.append(graph.add("Max", beyond, graph.scalar(0.0, np.float64)))
        if self.pairs:
            left, right = zip(*self.pairs, strict=True)
            width = self.design.width
            made.append(graph.add("Mul", graph.columns(whole, left, width), graph.columns(whole, right, width)))
        joined = made[0] if len(made) == 1 else graph.add("Concat", *made, axis=1)
        product = graph.add("MatMul", joined, graph.constant(self.weights, np.float64))
        margin = graph.add("Add", product, graph.constant(self.intercept, np.float64))
        if self.classes is None:
            return graph.values(margin)
        return graph.probabilities(margin, self.classes, self.present.tolist())

    def cost(self) -> Cost:
        """One matrix product."""
        graph = Graph(self.features)
        self.draw(graph, "x")
        return Cost(macs=0 if self.one is not None else self.weights.size, bytes=graph.bytes, nodes=graph.nodes)


def _strongest_pairs(made: Floats, targets: Floats, count: int) -> tuple[tuple[int, int], ...]:
    """Pairs of columns whose product goes with what a linear fit of the columns leaves of the targets, strongest first.

    Args:
        made: (rows, columns).
        targets: (rows,) or (rows, classes).
    """
    targets = targets.reshape(len(made), -1)
    centred = np.column_stack([made - made.mean(axis=0), np.ones(len(made))])
    gram = centred.T @ centred + np.eye(centred.shape[1])
    left = targets - centred @ np.linalg.solve(gram, centred.T @ targets)
    mean = made.T @ made / len(made)
    spread = np.sqrt(np.maximum((made**2).T @ made**2 / len(made) - mean**2, 0.0))
    strength = np.zeros_like(spread)
    for residual in left.T:
        residual = residual - residual.mean()
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.abs((made * residual[:, None]).T @ made) / spread
        strength += np.where(spread > 1e-6, found, 0.0) ** 2
    # A square of a number is a cross too; of a column of 0 and 1 it is the column itself.
    own = np.array([set(np.unique(column[:50])) <= {0.0, 1.0} for column in made.T])
    strength[np.flatnonzero(own), np.flatnonzero(own)] = 0.0
    rows, columns = np.triu_indices(len(strength))
    best = np.argsort(-strength[rows, columns], kind="stable")[:count]
    return tuple((int(rows[i]), int(columns[i])) for i in best if strength[rows[i], columns[i]] > 0)
