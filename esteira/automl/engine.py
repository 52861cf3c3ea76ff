"""The search's one door: arrays in, a fitted and drawn model out. It reads and writes no file but the storage it is given.

Bounded by trials, it looks at no clock: the same rows, seed and number give the same result to the last bit.
"""

from typing import Any

from numpy.typing import NDArray

from esteira.automl import drive
from esteira.automl.course import Course
from esteira.automl.evaluate import Fits, quiet_and_alike
from esteira.automl.finish import Finish, Result
from esteira.automl.kinds.base import Features
from esteira.automl.question import ask

__all__ = ["Result", "search", "work"]


def search(x: Features, y: NDArray[Any], *, storage: str = "", **words: Any) -> Result:
    """Find the best of the candidates; see `esteira.family.Search`.

    Args:
        x, y, words: as for `esteira.automl.question.ask`.
        storage: where the study lives (see `Study.open`); in memory by default.

    Raises:
        ConfigError: what `ask` raises, or limits that no model keeps.
        DataError: what `ask` raises, nothing could be fitted, or the metric is undefined on all held-back rows.
        OutsideError: the storage does not answer.
    """
    question = ask(x, y, **words)
    with quiet_and_alike():
        course = Course(question, Fits(question.data, question.folds, question.clock))
        drive.run(course, storage)
        drive.deepen(course)
        return Finish(question, course).result()


def work(x: Features, y: NDArray[Any], *, storage: str, **words: Any) -> None:
    """Make trials of a study that others work on too, and fit no final model; `search` on the same storage does that.

    Args:
        x, y, words: as for `esteira.automl.question.ask`, and the same for all workers: the study is found by them.
        storage: where the study lives, see `Study.open`.
    """
    question = ask(x, y, **words)
    with quiet_and_alike():
        drive.run(Course(question, Fits(question.data, question.folds, question.clock)), storage)
