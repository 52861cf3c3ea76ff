"""Says which arm a unit belongs to, the same at every call and in every process (H-40). It keeps nothing and draws nothing."""

import hashlib
from collections.abc import Collection

BUCKETS = 10_000
"""One bucket is a hundredth of a percent."""


def bucket(salt: str, test_id: str, unit: str) -> int:
    """A unit's place in a test, in [0, 10,000), evenly spread.

    The first 8 bytes of SHA-256, as an unsigned big-endian integer, modulo 10,000. What is hashed are the UTF-8 bytes of
    salt, test id and unit in this order, with a zero byte after the first and after the second, so that `("a", "bc")` is
    not `("ab", "c")`. Another salt or test shuffles the units anew, so that no unit is the guinea pig of every test.
    """
    said = f"{salt}\0{test_id}\0{unit}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(said).digest()[:8], "big") % BUCKETS


def to_candidate(split_percent: float, bucket: int) -> bool:
    """Whether the candidate answers the units of this bucket: `bucket < percent * 100`.

    Who is there at one percent is there at every higher one. At 0 or less, and at what is no number, nobody is.
    """
    # Rounded, because 0.07 * 100 is 7.000000000000001 and would let an eighth bucket in.
    return bucket < round(split_percent * 100, 6) if split_percent > 0 else False


def routed(salt: str, test_id: str, percent: float, unit: str, *, named: Collection[str] = ()) -> bool:
    """Whether the candidate answers this unit.

    Args:
        percent: of the units that are not named.
        named: units that always get the candidate, such as internal users (S-38); best a frozenset.
    """
    return unit in named or to_candidate(percent, bucket(salt, test_id, unit))
