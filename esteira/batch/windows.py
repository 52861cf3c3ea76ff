"""How a large job is split: into windows of so many rows, each with its hours, and windows into parts. Arithmetic only."""

WINDOW_ROWS = 60_000
"""Rows of one window: what 10,000 an hour are in six hours (S-23)."""
WINDOW_SECONDS = 6 * 3600.0


def part_end(row: int, rows_per_part: int) -> int:
    """Where the part that starts at a row ends: no part is longer than asked for, and none lies in two windows.

    >>> part_end(0, 25_000), part_end(50_000, 25_000), part_end(60_000, 25_000)
    (25000, 60000, 85000)
    """
    return min(row + rows_per_part, (row // WINDOW_ROWS + 1) * WINDOW_ROWS)


def parts(rows: int, rows_per_part: int) -> int:
    """How many parts so many rows take.

    >>> parts(0, 25_000), parts(60_000, 25_000), parts(60_001, 25_000)
    (0, 3, 4)
    """
    whole, rest = divmod(rows, WINDOW_ROWS)
    return whole * -(-WINDOW_ROWS // rows_per_part) + -(-rest // rows_per_part)


def windows(rows: int) -> int:
    """How many windows so many rows take; one at least.

    >>> windows(0), windows(60_000), windows(60_001)
    (1, 1, 2)
    """
    return max(1, -(-rows // WINDOW_ROWS))


def projected(rows: int, seconds: float) -> float:
    """Seconds that a whole window takes at the pace of a run that was measured.

    >>> projected(1_000, 3.0)
    180.0
    """
    return seconds * WINDOW_ROWS / rows
