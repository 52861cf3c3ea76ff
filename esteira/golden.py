"""Writes a family's folder `sample`: its rows, its broken rows, the native model's answers, and a table to run the steps on.

Called by `python -m families.NAME.sample`; no part of a model, and nothing else reads or writes there.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from esteira import outputs
from esteira.automl import search
from esteira.console import fail
from esteira.errors import EsteiraError
from esteira.family import Family, Search, load_family

SEED = 42


def write(
    folder: Path,
    name: str,
    *,
    rows: Sequence[Mapping[str, Any]],
    broken: Sequence[Mapping[str, Any]],
    table: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write rows.jsonl, broken.jsonl, table.jsonl if there is one, and answers.jsonl; what is refused ends the process in a letter.

    Args:
        folder: the family's folder `sample`.
        name: of the family.
        rows: `{"row", "truth"}` each: the golden sample.
        broken: `{"row", "column"}` each: what a finding must name.
        table: rows with their label, for `esteira run`.

    Raises:
        SystemExit: the family cannot learn from its sample, or the folder cannot be written.
    """
    files = {"rows.jsonl": _lines(rows), "broken.jsonl": _lines(broken)}
    try:
        outputs.write(folder, files | ({"table.jsonl": _lines(table)} if table else {}))
        outputs.write(folder, {"answers.jsonl": _lines(answers(load_family(name)))})
    except EsteiraError as error:
        fail(error.to_dict(), as_json=False)
        raise SystemExit(error.exit_code) from error


def answers(family: Family) -> list[dict[str, Any]]:
    """What the native model, fitted on the sample with seed 42, answers to it."""
    sample = family.sample()
    # What the engine finds has a family's `Searched`, read-only, which a protocol of plain attributes cannot say.
    engine = cast(Search, search)
    return family.fit(sample.rows, sample.truths, params=family.params(), seed=SEED, search=engine).answer(sample.rows)


def _lines(documents: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents).encode()
