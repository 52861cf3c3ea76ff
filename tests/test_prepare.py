"""Made features leak no label, tell what they claim, and are the same natively and in the graph to the last bit."""

import time
from typing import Any

import lightgbm
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from esteira.automl.kinds import make
from esteira.automl.kinds.base import Features
from esteira.automl.prepare import Columns, Recipe
from esteira.automl.prepare.fitted import Fitted, fit
from esteira.automl.prepare.redundant import redundant
from esteira.automl.prepare.text import Text
from esteira.onnx.graph import Graph

EVERYTHING = Recipe(target_encoding=True, frequency=True, ratios=4, text=3, drop=True)
NAMES = ("a", "b", "c", "d", "town", "street", "note.has.x", "note.has.y", "note.has.z", "note.has.w")
COLUMNS = Columns(NAMES, categorical=(4, 5), texts=((6, 7, 8, 9),))


def table(rows: int, seed: int) -> Features:
    """Numbers of many sizes, codes, words; cells missing."""
    rng = np.random.default_rng(seed)
    x = np.empty((rows, len(NAMES)), np.float32)
    x[:, :4] = rng.normal(size=(rows, 4)) * 10.0 ** rng.integers(-3, 4, size=4)
    x[:, 1] = np.exp(x[:, 1] / np.abs(x[:, 1]).max() * 3)
    x[:, 4] = rng.integers(0, 6, rows)
    x[:, 5] = rng.integers(0, max(2, rows // 2), rows)
    x[:, 6:] = rng.random((rows, 4)) < [0.5, 0.3, 0.2, 0.1]
    x[:, :6][rng.random((rows, 6)) < 0.1] = np.nan
    return x


def label(x: Features, task: str, seed: int) -> tuple[NDArray[Any], int | None]:
    rng = np.random.default_rng(seed)
    ratio = np.nan_to_num(x[:, 0] / x[:, 1])
    z = 5 * np.tanh(ratio / np.abs(ratio).mean()) + np.nan_to_num(x[:, 4]) + rng.normal(size=len(x))
    if task == "regression":
        return z, None
    classes = 2 if task == "binary" else 4
    return np.searchsorted(np.quantile(z, np.arange(1, classes) / classes), z), classes


def drawn(preparation: Fitted, x: Features) -> Features:
    """What the graph makes of x."""
    graph = Graph(x.shape[1])
    content = graph.finish(graph.double(preparation.draw(graph, "x")), classes=len(preparation.columns.names))
    found: Features = one_thread(content).run(None, {"x": x})[0].astype(np.float32)
    return found


def one_thread(content: bytes) -> ort.InferenceSession:
    """The graph, ready to answer."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def same_bits(a: Features, b: Features) -> bool:
    """Equal to the last bit; a missing number equals a missing number."""
    return bool(np.array_equal(a, b, equal_nan=True)) and bool((np.signbit(a) == np.signbit(b))[~np.isnan(a)].all())


recipes = st.builds(
    Recipe,
    target_encoding=st.booleans(), frequency=st.booleans(), ratios=st.sampled_from([0, 1, 6]),
    text=st.sampled_from([0, 1, 3, 9]), drop=st.booleans(),
)  # fmt: skip
odd = st.sampled_from([np.nan, 0.0, -0.0, 1.0, -1.0, 0.5, 7.0, 99999.0, -3.0, 1e-38, -1e-30, 1e30, -3e38, 3.4e38])


@settings(deadline=None, max_examples=60)
@given(
    recipe=recipes, task=st.sampled_from(["binary", "multiclass", "regression", "clustering"]),
    rows=st.integers(2, 300), seed=st.integers(0, 10_000), cells=st.lists(odd, min_size=30, max_size=30),
)  # fmt: skip
def test_the_graph_gives_the_same_features_to_the_last_bit(
    recipe: Recipe, task: str, rows: int, seed: int, cells: list[float]
) -> None:
    """Rows of the fit, unseen rows with unseen codes, and rows of the oddest cells; in batch and row by row."""
    x = table(rows, seed)
    y, classes = (None, None) if task == "clustering" else label(x, task, seed)
    preparation, _ = fit(recipe, x, y, columns=COLUMNS, classes=classes, seed=seed)
    asked = np.concatenate([x, table(40, seed + 1), np.array(cells, np.float32).reshape(3, 10)])
    native = preparation.apply(asked)

    assert native.dtype == np.float32
    assert (len(asked), len(preparation.columns.names)) == native.shape
    assert same_bits(native, drawn(preparation, asked))
    for row in [0, *range(len(asked) - 4, len(asked))]:
        assert same_bits(native[row : row + 1], preparation.apply(asked[row : row + 1]))
        assert same_bits(native[row : row + 1], drawn(preparation, asked[row : row + 1]))
    assert not len(preparation.apply(asked[:0]))
    assert not len(drawn(preparation, asked[:0]))


def test_a_million_ratios_are_divided_alike() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500_000, 2)) * np.exp2(rng.integers(-40, 40, size=(500_000, 2)))).astype(np.float32)
    y = x[:, 0] / x[:, 1]
    preparation, features = fit(Recipe(ratios=1), x, y, columns=Columns(("a", "b")), classes=None, seed=0)

    assert 3 == features.shape[1]
    assert same_bits(features, drawn(preparation, x))
    assert 0 < np.isnan(features[:, 2]).mean() < 0.5
    assert np.nanmax(np.abs(features[:, 2])) <= 1e30


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(10, 200), width=st.integers(2, 60), seed=st.integers(0, 1000))
def test_text_components_are_the_same_in_any_order_of_summation(rows: int, width: int, seed: int) -> None:
    """A tree may split on them: a matrix product elsewhere, with its own order of sums, gives no other bit."""
    rng = np.random.default_rng(seed)
    x = (rng.random((rows, width)) < rng.random(width)).astype(np.float32)
    columns = Columns(tuple(f"t.has.{word}" for word in range(width)), texts=(tuple(range(width)),))
    preparation, features = fit(Recipe(text=8), x, None, columns=columns, classes=None, seed=0)
    order = rng.permutation(width)
    elsewhere = np.empty((rows, features.shape[1] - width), np.float32)
    for part in preparation.parts:
        assert isinstance(part, Text)
        Text(tuple(order.tolist()), part.weights[order], part.squares[order]).apply(x, elsewhere)

    assert same_bits(features, drawn(preparation, x))
    assert same_bits(features[:, width:], elsewhere)


def test_text_components_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    rng = np.random.default_rng(3)
    topic = rng.integers(0, 3, 400)
    x = (rng.random((400, 12)) < np.where(np.arange(12) % 3 == topic[:, None], 0.6, 0.05)).astype(np.float32)
    columns = Columns(tuple(f"t.has.{word}" for word in range(12)), texts=(tuple(range(12)),))
    _, features = fit(Recipe(text=3), x, None, columns=columns, classes=None, seed=0)
    theirs = TruncatedSVD(3, algorithm="arpack", random_state=0).fit_transform(TfidfTransformer().fit_transform(x))

    assert np.allclose(np.abs(features[:, 12:]), np.abs(theirs), atol=1e-5)


# ---------------------------------------------------------------- target and frequency encoding


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(5, 120), seed=st.integers(0, 1000), task=st.sampled_from(["binary", "multiclass", "regression"])
)
def test_the_encoding_of_a_row_does_not_depend_on_its_own_label(rows: int, seed: int, task: str) -> None:
    x = table(rows, seed)
    y, classes = label(x, task, seed)
    changed = y.copy()
    changed[rows // 2] = y[rows // 2] + 100.0 if classes is None else (y[rows // 2] + 1) % classes
    recipe = Recipe(target_encoding=True)
    before = fit(recipe, x, y, columns=COLUMNS, classes=classes, seed=seed)[1]
    after = fit(recipe, x, changed, columns=COLUMNS, classes=classes, seed=seed)[1]

    assert same_bits(before[rows // 2 : rows // 2 + 1], after[rows // 2 : rows // 2 + 1])


def test_a_category_of_noise_does_not_tell_the_label_of_the_rows_of_the_fit() -> None:
    """Encoded in the fold it would: every level has four rows, so their mean holds a quarter of the label."""
    rng = np.random.default_rng(1)
    x = np.repeat(np.arange(1, 501), 4)[:, None].astype(np.float32)
    y = rng.integers(0, 2, 2000)
    columns = Columns(("id",), categorical=(0,))
    preparation, features = fit(Recipe(target_encoding=True), x, y, columns=columns, classes=2, seed=0)

    assert abs(np.corrcoef(features[:, 1], y)[0, 1]) < 0.06
    assert abs(np.corrcoef(preparation.apply(x)[:, 1] - features[:, 1], y)[0, 1]) > 0.2


def test_encodings_of_a_telling_category_are_its_means_and_of_an_unseen_one_the_mean_of_all() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(1, 6, 5000)
    y = codes * 10.0 + rng.normal(size=5000)
    columns = Columns(("town",), categorical=(0,))
    preparation, _ = fit(
        Recipe(target_encoding=True, frequency=True), codes[:, None].astype(np.float32), y, columns=columns,
        classes=None, seed=0,
    )  # fmt: skip
    means = [y[codes == code].mean() for code in range(1, 6)]
    asked = preparation.apply(np.array([[1], [2], [3], [4], [5], [77], [0], [np.nan]], np.float32))

    assert ("town", "town.target", "town.frequency") == preparation.columns.names
    assert np.allclose(asked[:5, 1], means, atol=0.05)
    assert np.allclose(asked[5:, 1], y.mean())
    assert np.allclose(asked[:, 2], [*np.bincount(codes, minlength=6)[1:] / 5000, 0, 0, 0])


def test_a_category_of_fifty_thousand_levels_is_encoded() -> None:
    rng = np.random.default_rng(4)
    codes = np.sort(rng.zipf(1.2, 200_000) % 50_000 + 1).astype(np.float32)[:, None]
    tells = rng.normal(size=50_001)
    y = tells[codes[:, 0].astype(int)] + rng.normal(size=len(codes))
    began = time.perf_counter()
    preparation, features = fit(
        Recipe(target_encoding=True, frequency=True), codes, y, columns=Columns(("id",), (0,)), classes=None, seed=0
    )

    assert time.perf_counter() - began < 5
    assert np.corrcoef(features[:, 1], y)[0, 1] > 0.5
    assert same_bits(preparation.apply(codes[-1000:]), drawn(preparation, codes[-1000:]))


def test_many_classes_get_no_target_encoding() -> None:
    x = table(100, 0)
    preparation, features = fit(Recipe(target_encoding=True), x, np.arange(100) % 9, columns=COLUMNS, classes=9, seed=0)

    assert NAMES == preparation.columns.names
    assert features is x


# ---------------------------------------------------------------- ratios


def squares(rows: int = 3000, seed: int = 0) -> tuple[Features, NDArray[np.int64]]:
    """Weight and height among other numbers; the label says whether weight / height is large, neither part alone."""
    rng = np.random.default_rng(seed)
    x = rng.lognormal(sigma=0.7, size=(rows, 8)).astype(np.float32)
    return x, (x[:, 5] / x[:, 2] > 1.0).astype(np.int64)


@pytest.mark.parametrize("seed", range(3))
def test_the_one_ratio_that_tells_is_found_first(seed: int) -> None:
    """On a dataset where only a ratio predicts the target, that ratio is created and ranked first."""
    x, y = squares(seed=seed)
    names = tuple("abcdefgh")
    preparation, features = fit(Recipe(ratios=3), x, y, columns=Columns(names), classes=2, seed=seed)

    assert preparation.catalogue[0]["name"] in {"f / c", "c / f"}
    assert ["f", "c"] == sorted(preparation.catalogue[0]["made_of"], reverse=True)
    threshold = features[:, 8] > 1.0
    assert max((threshold == y).mean(), (threshold != y).mean()) == 1.0
    model = lightgbm.train(
        {"objective": "binary", "num_threads": 1, "verbosity": -1}, lightgbm.Dataset(features, y), num_boost_round=20
    )
    assert 8 == model.feature_importance("gain").argmax()


def test_noise_gets_no_ratio() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x = rng.lognormal(size=(2000, 12)).astype(np.float32)
        for y, classes in [(rng.integers(0, 2, 2000), 2), (rng.integers(0, 5, 2000), 5), (rng.normal(size=2000), None)]:
            found = fit(Recipe(ratios=5), x, y, columns=Columns(tuple("abcdefghijkl")), classes=classes, seed=0)
            assert found[1] is x


def test_a_label_that_adds_up_from_its_parts_gets_no_ratio() -> None:
    rng = np.random.default_rng(0)
    x = rng.lognormal(size=(3000, 4)).astype(np.float32)
    y = np.log(x[:, 0]) + np.log(x[:, 1]) + 0.1 * rng.normal(size=3000)

    assert fit(Recipe(ratios=5), x, y, columns=Columns(tuple("abcd")), classes=None, seed=0)[1] is x


def test_a_ratio_that_is_a_column_already_is_not_made_again() -> None:
    x, y = squares()
    x[:, 0] = x[:, 5] / x[:, 2]
    preparation, _ = fit(Recipe(ratios=3), x, y, columns=Columns(tuple("abcdefgh")), classes=2, seed=0)

    assert not [entry for entry in preparation.catalogue if sorted(entry["made_of"]) == ["c", "f"]]


def test_a_denominator_near_zero_makes_a_missing_ratio() -> None:
    x, y = squares()
    preparation, _ = fit(Recipe(ratios=1), x, y, columns=Columns(tuple("abcdefgh")), classes=2, seed=0)
    under = "abcdefgh".index(preparation.catalogue[0]["made_of"][1])
    asked = x[:4].copy()
    asked[:, under] = [0.0, 1e-9, np.nan, 1.0]

    assert [True, True, True, False] == np.isnan(preparation.apply(asked)[:, 8]).tolist()


# ---------------------------------------------------------------- what is left out


def test_nearly_constant_columns_copies_and_near_copies_are_left_out_and_said_so() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 7)).astype(np.float32)
    x[:, 1] = 5
    x[7, 1] = 6
    x[:, 2] = -3 * x[:, 0] + 0.01 * x[:, 6]
    x[:, 3] = np.nan
    x[:, 4] = rng.integers(1, 4, 4000)
    x[:, 5] = x[:, 4]
    columns = Columns(("a", "almost", "scaled", "empty", "town", "town_again", "g"), categorical=(4, 5))
    preparation, features = fit(Recipe(drop=True), x, None, columns=columns, classes=None, seed=0)

    assert {"almost", "scaled", "empty", "town_again"} == set(preparation.dropped)
    assert "99.98% of its cells are one value" == preparation.dropped["almost"]
    assert "correlation -1.000 with a" == preparation.dropped["scaled"]
    assert Columns(("a", "town", "g"), categorical=(1,)) == preparation.columns
    assert same_bits(x[:, [0, 4, 6]], features)


def test_columns_that_share_an_outlier_or_differ_in_missing_cells_stay() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 4)).astype(np.float32)
    x[0, :2] = 1e6
    x[:, 3] = x[:, 2]
    x[rng.random(1000) < 0.2, 3] = np.nan

    assert np.corrcoef(x[:, 0], x[:, 1])[0, 1] > 0.98
    assert {} == redundant(x, tuple("abcd"), (), seed=0)


def test_a_table_of_constants_keeps_its_columns() -> None:
    x = np.ones((50, 3), np.float32)

    assert fit(Recipe(drop=True), x, None, columns=Columns(tuple("abc")), classes=None, seed=0)[1] is x


# ---------------------------------------------------------------- the whole


def test_nothing_asked_for_is_nothing_made() -> None:
    x = table(50, 0)
    preparation, features = fit(Recipe(), x, label(x, "binary", 0)[0], columns=COLUMNS, classes=2, seed=0)

    assert features is x
    assert preparation.apply(x) is x
    assert "x" == preparation.draw(Graph(10), "x")
    assert 0 == preparation.cost().nodes


def test_the_catalogue_says_of_each_made_feature_what_it_is() -> None:
    """Name, transformation, parts, share missing, mean, deviation and correlation, of the rows of the fit."""
    x = table(3000, 5)
    y, _ = label(x, "regression", 5)
    preparation, features = fit(EVERYTHING, x, y, columns=COLUMNS, classes=None, seed=5)
    given = len(preparation.kept)

    assert preparation.columns.names[given:] == tuple(entry["name"] for entry in preparation.catalogue)
    assert {"target_encoding", "frequency", "ratio", "tfidf_svd"} == {
        e["transformation"] for e in preparation.catalogue
    }
    for entry, values in zip(preparation.catalogue, features[:, given:].T.astype(np.float64), strict=True):
        seen = ~np.isnan(values)
        assert set(entry["made_of"]) <= set(NAMES)
        assert entry["missing"] == pytest.approx(1 - seen.mean())
        assert entry["mean"] == pytest.approx(values[seen].mean())
        assert entry["deviation"] == pytest.approx(values[seen].std())
        assert entry["correlation"] == pytest.approx(np.corrcoef(values[seen], y[seen])[0, 1])


def test_the_cost_counts_the_operators_and_constants_of_the_graph() -> None:
    x = table(3000, 5)
    y, _ = label(x, "regression", 5)
    preparation, _ = fit(EVERYTHING, x, y, columns=COLUMNS, classes=None, seed=5)
    graph = Graph(len(NAMES))
    preparation.draw(graph, "x")
    weights = sum(len(constant.raw_data) for constant in graph._constants)

    assert preparation.cost().nodes == len(graph._nodes)
    assert preparation.cost().bytes == pytest.approx(weights, rel=0.05)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("kind", ["lightgbm", "linear"])
def test_an_estimator_on_made_features_answers_alike_natively_and_in_the_graph(task: str, kind: str) -> None:
    x = table(600, 8)
    y, classes = label(x, task, 8)
    preparation, features = fit(EVERYTHING, x, y, columns=COLUMNS, classes=classes, seed=8)
    params = {"n_estimators": 30} if kind == "lightgbm" else {}
    estimator = make(kind, params, task=task, classes=classes, categorical=preparation.columns.categorical, seed=0)
    estimator.fit(features, y)
    graph = Graph(len(NAMES))
    content = graph.finish(estimator.draw(graph, preparation.draw(graph, "x")), classes=classes)
    asked = table(200, 9)
    native = estimator.predict(preparation.apply(asked))
    session = one_thread(content)
    (found,) = session.run(None, {"x": asked})

    assert np.abs(found - native).max() <= 1e-9 * max(1.0, np.abs(native).max())
    for row in range(5):
        (alone,) = session.run(None, {"x": asked[row : row + 1]})
        assert np.abs(alone - found[row : row + 1]).max() <= 1e-12 * max(1.0, np.abs(native).max())


def test_the_same_rows_and_seed_give_the_same_features() -> None:
    x = table(400, 9)
    y, classes = label(x, "multiclass", 9)
    first, second = (fit(EVERYTHING, x, y, columns=COLUMNS, classes=classes, seed=1) for _ in range(2))

    assert first[0].catalogue == second[0].catalogue
    assert first[1].tobytes() == second[1].tobytes()


def test_the_rows_of_the_fit_are_not_changed() -> None:
    x = table(300, 2)
    y, classes = label(x, "binary", 2)
    before = x.copy()
    preparation, _ = fit(EVERYTHING, x, y, columns=COLUMNS, classes=classes, seed=1)
    preparation.apply(x)

    assert same_bits(before, x)


def test_a_thousand_columns_are_prepared_in_seconds() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 1000)).astype(np.float32)
    x[:, 900:] = rng.integers(0, 20, size=(5000, 100))
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    columns = Columns(tuple(f"c{i}" for i in range(1000)), categorical=tuple(range(900, 1000)))
    began = time.perf_counter()
    fit(EVERYTHING, x, y, columns=columns, classes=2, seed=0)

    assert time.perf_counter() - began < 20
