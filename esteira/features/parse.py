"""What one cell means as a number, boolean, date, category, text or object: the one place that decides it. It knows no contract."""

import json
import math
import numbers
import re
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esteira.features.contract import ClassLabel, Target

NAN = math.nan
LARGEST = 3.4028234663852886e38  # of float32; a finite number beyond it counts as this one
SHOWN = 40

# In a column of numbers, booleans or dates these words mean an empty cell; in a category or text they are values.
MISSING_WORDS = frozenset({"", "na", "n/a", "nan", "null", "none", "nil", "?", "-", "<na>", "nat"})
TRUE_WORDS = frozenset({"true", "t", "yes", "y", "1", "1.0"})
FALSE_WORDS = frozenset({"false", "f", "no", "n", "0", "0.0"})

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_DATE = re.compile(r"\d{4}([-/.])\d\d\1\d\d(?!\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# The years 1 to 9999 in UTC, in microseconds since 1970.
EARLIEST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
LATEST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


def shown(value: Any) -> str:
    """The value for a message: its repr, at most 40 characters of it; of a large one its type and size."""
    if isinstance(value, list | dict | tuple) and len(value) > SHOWN // 4:
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 4 * SHOWN:
        return f"a number of about {value.bit_length() * 3 // 10} digits"
    text = repr(value[: SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def is_missing(value: Any) -> bool:
    """True for None, NaN, NaT, pandas' NA and blank text."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    try:
        return not bool(value == value)  # NaN and NaT differ from themselves
    except (TypeError, ValueError):
        return type(value).__name__ == "NAType"  # pandas' NA says neither; an array is a value


def number(value: Any) -> float:
    """The cell as a finite number; NaN when it is empty.

    Raises:
        ValueError: it is not a finite number; the message says rule and value.
    """
    if type(value) is float:  # most cells of most tables: the question after numbers.Real below takes ten times as long
        result = value
    elif isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            if text.lower() in MISSING_WORDS:
                return NAN
            raise ValueError(f"must be a finite number, but got {shown(value)}")
        result = float(text)
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        if is_missing(value):
            return NAN
        raise ValueError(f"must be a number, but got {shown(value)}")
    else:
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    if math.isinf(result):
        raise ValueError(f"must be a finite number, but got {shown(value)}")
    return result


def boolean(value: Any) -> float:
    """The cell as 1.0 or 0.0; NaN when it is empty. Takes true/false, yes/no, t/f, y/n in any case, and 1/0.

    Raises:
        ValueError: it is something else.
    """
    if value is True:
        return 1.0
    if value is False:
        return 0.0
    if isinstance(value, str):
        word = value.strip().lower()
        if word in TRUE_WORDS:
            return 1.0
        if word in FALSE_WORDS:
            return 0.0
        if word in MISSING_WORDS:
            return NAN
    elif is_missing(value):
        return NAN
    elif type(value).__name__ == "bool" or (isinstance(value, numbers.Real) and value in (0, 1)):  # numpy's bool too
        return float(value)
    raise ValueError(f"must be true or false, but got {shown(value)}")


def date_microseconds(value: Any) -> int | None:
    """The cell as microseconds since 1970-01-01 UTC; None when it is empty.

    Takes ISO dates and times (`2024-01-31`, `2024/01/31`, `2024-01-31T10:20:30+02:00`) and datetime objects; without an
    offset it is UTC.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, str):
        text = value.strip()
        match = _DATE.match(text)
        if match is None:
            if text.lower() in MISSING_WORDS:
                return None
            raise ValueError(f"must be a date like 2024-01-31 or 2024-01-31T10:20:30Z, but got {shown(value)}")
        if match[1] != "-":
            text = text[:10].replace(match[1], "-") + text[10:]
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise ValueError(f"must be a date like 2024-01-31, but got {shown(value)}") from error
    elif is_missing(value):
        return None
    elif isinstance(value, datetime):
        moment = value
    elif isinstance(value, date):
        moment = datetime.combine(value, time())
    elif type(value).__name__ == "datetime64":
        return int(value.astype("datetime64[us]").astype("int64"))
    else:
        raise ValueError(f"must be a date like 2024-01-31, but got {shown(value)}")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    stamp = (moment - _EPOCH) // _MICROSECOND
    if not EARLIEST <= stamp <= LATEST:
        raise ValueError(f"must be a date of the years 1 to 9999 in UTC, but got {shown(value)}")
    return stamp


def text(value: Any) -> str | None:
    """The cell as stripped text; None when it is empty. A number becomes its shortest text, a whole float keeps `.0`.

    Raises:
        ValueError: it is a boolean, a list or an object.
    """
    if isinstance(value, str):
        return value.strip() or None
    if is_missing(value):
        return None
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        return str(value)
    raise ValueError(f"must be text, but got {shown(value)}")


def nested(value: Any) -> dict[str, Any] | list[Any] | None:
    """The cell as a JSON object or array, given as such or as its JSON text; None when it is empty.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, dict | list):
        return value
    if is_missing(value):
        return None
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict | list):
            return found
    raise ValueError(f"must be a JSON object or array, but got {shown(value)}")


def nested_text(value: Any) -> str | None:
    """The cell as the JSON text of an object or array, the same text for the same value; None when it is empty.

    Raises:
        ValueError: it is something else, or holds a number that is not finite.
    """
    found = nested(value)
    try:
        return None if found is None else json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be JSON with finite numbers, but got {shown(value)}: {error}") from error


def label(value: Any, target: "Target") -> "ClassLabel | float | None":
    """The label's cell as one of the target's classes, or as a number for regression; None when it is empty.

    Raises:
        ValueError: it is no class of the contract, or no finite number.
    """
    if target.classes is None:
        result = number(value)
        return None if result != result else result
    first = target.classes[0]
    found: ClassLabel
    if isinstance(first, bool):
        truth = boolean(value)
        if truth != truth:
            return None
        found = truth == 1.0
    elif isinstance(first, int):
        amount = number(float(value) if isinstance(value, bool) else value)
        if amount != amount:
            return None
        if not amount.is_integer():
            raise ValueError(f"must be one of the classes, whole numbers, but got {shown(value)}")
        found = int(amount)
    else:
        word = str(value) if isinstance(value, bool) else text(value)
        if word is None or word.lower() == "nan":
            return None
        found = word
    if found not in target.classes:
        known = ", ".join(map(str, target.classes[:8])) + (", ..." if len(target.classes) > 8 else "")
        raise ValueError(f"must be one of the classes {known}, but got {shown(value)}")
    return found
