"""AutoML as an estimator: scikit-learn's own checks, and what is left of them with the reason."""

from typing import Any

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from esteira.automl.sklearn_api import AutoMLClassifier, AutoMLRegressor

QUICK: dict[str, Any] = {"trials": 1, "kinds": ("linear",)}


NO_PICKLE = "nothing here is written or read as a pickle: a model is kept with automl_.export, as a bundle"
EXPECTED = {"check_estimators_pickle": NO_PICKLE}


@pytest.mark.slow
@parametrize_with_checks(
    [AutoMLClassifier(**QUICK), AutoMLRegressor(**QUICK)], expected_failed_checks=lambda _: EXPECTED
)
def test_it_is_an_estimator_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize(
    "pair",
    [("nan", "x"), ("1", "1.0"), ("NA", "1"), ("inf", "1"), ("a", "a "), (2**53, 2**53 + 1)],
    ids=str,
)
def test_labels_that_a_table_would_not_tell_apart_are_told_apart(pair: tuple[Any, Any]) -> None:
    x = np.linspace(0, 1, 40)[:, None]
    y = np.array([pair[0]] * 20 + [pair[1]] * 20, dtype=object if isinstance(pair[0], str) else None)

    model = AutoMLClassifier(**QUICK).fit(x, y)

    assert (model.predict(x) == y).mean() > 0.9
    assert set(pair) == set(model.classes_)
