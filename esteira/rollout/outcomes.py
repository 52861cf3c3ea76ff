"""The outcome of one answer once its truth is known: the family's word, held to [0, 1]. Pure."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from esteira.errors import DataError
from esteira.family import Answer


def outcome_of(family: Any, truth: Any, answer: Answer, manifest: Mapping[str, Any]) -> float:
    """How good an answer was, in [0, 1]; 1 is good.

    The two arms of a rollout are held to one manifest, the champion's: a candidate with wide intervals must not look better
    because it is measured by its own.

    Args:
        family: an `esteira.family.Family`. One whose `outcome` takes `manifest` is given it.
        truth: as the label was in the data.
        answer: of it only `prediction` is sure to be there.
        manifest: of the champion's bundle.

    Raises:
        DataError: code `bad_truth`: the truth is none of this label's, or the outcome is out of range.
    """
    if truth is None or (isinstance(truth, float) and not math.isfinite(truth)):
        raise _bad("null" if truth is None else "no finite number")
    try:
        if "manifest" in inspect.signature(family.outcome).parameters:
            value = family.outcome(truth, answer, manifest=manifest)
        else:
            value = family.outcome(truth, answer)
        found = float(value)
    except DataError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise _bad(type(error).__name__) from error
    if not 0.0 <= found <= 1.0:
        raise _bad(f"an outcome of {found:g}, outside of [0, 1]")
    return found


def _bad(how: str) -> DataError:
    return DataError(
        f"a truth is a value of the line's label, but this one gives {how}",
        code="bad_truth", where="truth", cure="send the label as it stands in the training data",
    )  # fmt: skip
