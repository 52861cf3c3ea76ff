"""A featurizer that learns nothing: a pure function of rows, with the names of what it makes. It reads and writes no file."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira.errors import ConfigError
from esteira.family import Row
from esteira.features.contract import TableContract
from esteira.features.decode import clean_rows, json_rows

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

PROBE = "feature_probe.json"
PROBE_ROWS = 16


class StatelessFeaturizer:
    """Satisfies `esteira.family.Featurizer`. The code is not in a bundle, so some rows and their features are.

    Args:
        contract: of the line; typed rows become JSON rows by it.
        function: rows to features of shape (rows, len(made_of)).
        made_of: feature -> columns it is made of, in the order of the features.
        codes: features that are codes of categories.

    Raises:
        ConfigError: a feature is made of a column that the contract does not have, or a code is no feature.
    """

    def __init__(
        self,
        contract: TableContract,
        function: "Callable[[Sequence[Row]], NDArray[np.float32]]",
        made_of: Mapping[str, Sequence[str]],
        codes: Sequence[str],
        probe: Sequence[Row] = (),
    ) -> None:
        self._contract, self._function, self._made_of, self._codes = contract, function, made_of, codes
        self._probe = probe
        self.names = tuple(made_of)
        columns = [column.name for column in contract.columns]
        strange = {column for parts in made_of.values() for column in parts}.difference(columns)
        if strange or set(codes).difference(self.names):
            raise ConfigError(
                f"MADE_OF names columns of the contract ({', '.join(columns)}) and CODES names features"
                f" ({', '.join(self.names)}), but got {min(strange or set(codes).difference(self.names))!r}",
                code="unknown_column",
                where=f"{contract.line}, features.py",
                cure="correct MADE_OF or CODES, or declare the column in contract.py",
            )
        self.categorical = tuple(at for at, name in enumerate(self.names) if name in codes)
        self.groups: Mapping[str, Sequence[int]] = {
            column: tuple(at for at, parts in enumerate(made_of.values()) if column in parts) for column in columns
        }

    def rows(self, rows: Sequence[Row]) -> "NDArray[np.float32]":
        """Features of shape (rows, len(names)); NaN is missing."""
        return self._function(clean_rows(rows, self._contract))

    def frame(self, frame: "pd.DataFrame") -> "NDArray[np.float32]":
        """The same of typed rows as validate writes them."""
        return self._function(json_rows(frame, self._contract))

    def remembering(self, frame: "pd.DataFrame") -> "StatelessFeaturizer":
        """The same with the features of some rows in mind, spread over the frame, those with gaps first."""
        gaps = np.flatnonzero(frame.isna().any(axis=1).to_numpy())[: PROBE_ROWS // 4]
        spread = np.linspace(0, max(len(frame) - 1, 0), num=min(PROBE_ROWS, len(frame)), dtype=np.int64)
        picked = sorted({*gaps.tolist(), *spread.tolist()})
        rows = json_rows(frame.iloc[picked], self._contract)
        return StatelessFeaturizer(self._contract, self._function, self._made_of, self._codes, rows)

    def files(self) -> Mapping[str, bytes]:
        """`feature_probe.json`: the names, and some rows with their features."""
        made = self._function(self._probe) if self._probe else np.empty((0, len(self.names)), dtype=np.float32)
        document = {"names": self.names, "rows": self._probe, "features": _plain(made)}
        return {PROBE: (json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n").encode()}

    def differs(self, probe: bytes) -> str:
        """How this code's features differ from those of a bundle's `feature_probe.json`; empty if they do not."""
        kept: dict[str, Any] = json.loads(probe)
        if kept["names"] != list(self.names):
            return f"features.py makes {', '.join(self.names)}, and the model learned from {', '.join(kept['names'])}"
        made = _plain(self._function(kept["rows"])) if kept["rows"] else []
        for row, (now, then) in enumerate(zip(made, kept["features"], strict=True)):
            for name, one, other in zip(self.names, now, then, strict=True):
                if one != other:
                    return f"features.py makes {name!r} {one} of a row that made {other} (row {row} of {PROBE})"
        return ""


def _plain(x: "NDArray[np.float32]") -> list[list[float | None]]:
    """Features as JSON has them; float32 values are exact as double, missing ones null."""
    return [[None if value != value else value for value in row] for row in x.tolist()]
