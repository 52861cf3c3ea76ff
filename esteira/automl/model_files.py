"""What a search found, as the model's own files: graph, decoder, answers to hold it to, leaderboard. It trains and writes nothing."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from esteira.family import Answerer, Trainable
from esteira.features.contract import TableContract
from esteira.features.decode import json_rows

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from esteira.automl.engine import Result

GOLDEN_ROWS = 20
REFERENCE_ROWS = 1000


class NativeBundle:
    """What a bundle will be, with the native model in the graph's place; satisfies `esteira.family.OpenBundle`."""

    def __init__(self, manifest: Mapping[str, Any], files: Mapping[str, bytes], found: "Result") -> None:
        self.manifest = manifest
        self._files = files
        self._found = found

    def read(self, name: str) -> bytes:
        """Bytes of a file of the bundle to be."""
        return self._files[name]

    def run(self, stage: str, x: "NDArray[np.float32]") -> "dict[str, NDArray[Any]]":
        """The native model's prediction, under the graph's name for it."""
        return {"y": self._found.predict(x)}


def model_files(
    family: Trainable,
    line: str,
    contract: TableContract,
    featurizer: Mapping[str, bytes],
    found: "Result",
    y: "NDArray[Any]",
    *,
    rows: "pd.DataFrame",
    held: "pd.DataFrame",
    seed: int,
    golden: int = GOLDEN_ROWS,
    reference: int = REFERENCE_ROWS,
) -> dict[str, bytes]:
    """The model's own files.

    Args:
        family: what answers from them.
        line: `FAMILY` or `FAMILY@NAME`.
        contract: of the rows.
        featurizer: its files, such as decoder.json.
        found: what the search found.
        y: class codes or values of the training rows.
        rows: typed training rows, of which a sample travels along.
        held: typed rows to hold an export to; the training rows where none were held back.
        seed: of the sample.
        golden: about how many rows go with the native model's answers.
        reference: training rows, at most, that go along for comparison with later data.

    Returns:
        graph.onnx, post.json, the featurizer's files, golden.json `{"rows", "answers"}` and reference.json. The same
        arguments give the same bytes.
    """
    target = contract.target
    post = family.post(contract, y, found.out_of_fold)
    if found.threshold is not None:
        post["threshold"] = found.threshold
    if found.record.get("calibration"):
        post["confidence_kind"] = "calibrated"
    files = {"graph.onnx": found.graph(), "post.json": dumped(post), **featurizer}
    manifest = {"family": family.name, "line": line, **family.manifest(contract, post)}
    native = family.open(NativeBundle(manifest, files, found))
    asked = golden_rows(held, contract, native, golden)
    files["golden.json"] = dumped({"rows": asked, "answers": native.answer(asked)})
    picked = np.sort(np.random.default_rng(seed).permutation(len(y))[:reference])
    sample = json_rows(rows.iloc[picked], contract)
    truths = [target.classes[int(code)] for code in y[picked]] if target.classes else y[picked].tolist()
    files["reference.json"] = dumped(reference_of(sample, contract, truths))
    return files


def golden_rows(frame: "pd.DataFrame", contract: TableContract, model: Answerer, count: int) -> list[dict[str, Any]]:
    """Rows to hold an export to: rows with gaps, rows spread over all, one with an unseen category, one with no cell filled.

    Args:
        frame: typed rows that obey the contract, at least one.
        contract: tells which columns are categories.
        model: tells which of the made-up rows must be answered at all.
        count: about how many are wanted.
    """
    names = [column.name for column in contract.columns]
    gaps = np.flatnonzero(frame[names].isna().any(axis=1).to_numpy())[: max(1, count // 4)]
    others = np.setdiff1d(np.arange(len(frame)), gaps)
    wanted = min(len(others), max(0, count - len(gaps)))
    spread = others[np.arange(wanted) * len(others) // max(1, wanted)]
    chosen = json_rows(frame.iloc[np.concatenate([gaps, spread])], contract)
    first = chosen[0]
    unseen = {column.name: "never seen before" for column in contract.columns if column.kind == "category"}
    made = [*([{**first, **unseen}] if unseen else []), dict.fromkeys(first)]
    refused = {finding.row for finding in model.check(made) if finding.severity == "error"}
    return [*chosen, *(row for at, row in enumerate(made) if at not in refused)]


def reference_of(rows: Sequence[Mapping[str, Any]], contract: TableContract, truths: Sequence[Any]) -> dict[str, Any]:
    """A sample of training rows by column, with their labels, for comparison with later data."""
    return {
        "version": 1,
        "rows": len(rows),
        "columns": [
            {"name": column.name, "kind": column.kind, "values": [row.get(column.name) for row in rows]}
            for column in contract.columns
        ],
        "label": {"name": contract.target.name, "values": list(truths)},
    }


def leaderboard(found: "Result") -> list[dict[str, Any]]:
    """The leaderboard as it is kept: without wall times, which would make every training's bytes different."""
    kept = [{key: value for key, value in row.items() if key != "fit_seconds"} for row in found.leaderboard]
    return [{"metric": found.metric, **row} for row in kept]


def dumped(value: Any) -> bytes:
    """A document as one line of JSON."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
