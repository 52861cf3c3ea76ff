"""AutoML as an estimator: scikit-learn's own checks, and what is left of them with the reason."""

from typing import Any

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
