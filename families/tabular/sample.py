"""Rewrites sample/: `python -m families.tabular.sample`. The rows are made up, seeded, and say so; nothing else reads this.

A parcel service asks whether a delivery will be late. The rows have every kind of column that a table may have, and
missing cells.
"""

import importlib
import json
import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from esteira import outputs
from esteira.family import Answer, Search

FOLDER = Path(__file__).parent / "sample"
ROWS = 160
SEED = 42
NOTES = ("leave at door", "ring twice", "fragile glass", "call before", "gate code needed", "leave with neighbour")


def rows(count: int = ROWS, seed: int = 7) -> list[dict[str, Any]]:
    """Made-up deliveries, `{"row", "truth"}` each; the truth is `late` or `on time`."""
    rng = random.Random(seed)
    made = []
    for index in range(count):
        depot = rng.choices(["north", "south", "harbour", "airport"], [4, 3, 2, 1])[0]
        distance = round(rng.lognormvariate(2.5, 0.7), 1)
        stops = rng.randint(1, 40)
        express = rng.random() < 0.3
        day = date(2024, 1, 1) + timedelta(days=rng.randrange(300))
        note = rng.choice(NOTES)
        risk = 0.05 * distance + 0.08 * stops + (1.4 if depot == "harbour" else 0.0) - (1.8 if express else 0.0)
        risk += 0.9 if day.weekday() >= 5 else 0.0
        risk += 0.8 if "code" in note else 0.0
        late = risk + rng.gauss(0, 0.6) > 2.6
        row: dict[str, Any] = {
            "distance_km": distance,
            "stops": stops,
            "depot": depot,
            "express": express,
            "day": day.isoformat(),
            "note": f"{note} {rng.randint(1, 9)}" if rng.random() > 0.2 else None,
            "weight_kg": None if index % 9 == 4 else round(rng.uniform(0.1, 30), 2),
        }
        made.append({"row": row, "truth": "late" if late else "on time"})
    return made


def broken(good: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that break one rule each, `{"row", "column"}`; the column is what the finding must name."""
    absent = {name: value for name, value in good.items() if name != "stops"}
    return [
        {"row": absent, "column": "stops"},
        {"row": {**good, "distance_km": "far"}, "column": "distance_km"},
        {"row": {**good, "express": "perhaps"}, "column": "express"},
        {"row": {**good, "day": "yesterday"}, "column": "day"},
        {"row": {**good, "depot": ["north"]}, "column": "depot"},
        {"row": {**good, "colour": "red"}, "column": "colour"},
    ]


def answers(search: Search) -> list[Answer]:
    """What the native model, fitted on the sample with seed 42, answers to it."""
    from families.tabular import FAMILY, Params

    sample = FAMILY.sample()
    return FAMILY.fit(sample.rows, sample.truths, params=Params(), seed=SEED, search=search).answer(sample.rows)


def main() -> None:
    """Write rows.jsonl, broken.jsonl and answers.jsonl beside this file."""
    made = rows()
    outputs.write(FOLDER, {"rows.jsonl": _lines(made), "broken.jsonl": _lines(broken(made[0]["row"]))})
    # Families know no engine; here, as in the steps, it is handed in from outside.
    search: Search = importlib.import_module("esteira.automl").search
    outputs.write(FOLDER, {"answers.jsonl": _lines(answers(search))})


def _lines(documents: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents).encode()


if __name__ == "__main__":
    main()
