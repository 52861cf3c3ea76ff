"""The split inside the serving process: champion and candidate in one Bento, which reads the line's split file."""

from pathlib import Path

from esteira.rollout import split as splits
from esteira.rollout.split import Split


class InProcess:
    """Splits by writing the file that every serving process of this home looks at with each request.

    Args:
        home: `$ESTEIRA_HOME`, shared by what decides and what serves.
        line: whose traffic.
    """

    name = "in-process"
    settle_seconds = 0.0
    sticky = named = True
    asks_again = False

    def __init__(self, home: Path, line: str) -> None:
        self._home, self._line = home, line

    @property
    def place(self) -> str:
        """A file of the line's own."""
        return f"in-process {self._line}"

    def share(self) -> float | None:
        """What the file says; a file that cannot be trusted counts as 0, as it does for what serves."""
        split = splits.read(splits.path(self._home, self._line))
        return 0.0 if split is None else split.percent

    def shift(self, split: Split | None, *, first: bool = False) -> None:
        """Write or remove the file.

        Raises:
            OutsideError: the disk is full or cannot be written; what stood there stands.
        """
        if split is None:
            splits.clear(self._home, self._line)
        else:
            splits.write(self._home, self._line, split)
