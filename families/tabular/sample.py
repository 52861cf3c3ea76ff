"""Rewrites sample/: `python -m families.tabular.sample`. The rows are made up, seeded, and say so; nothing else reads this.

A parcel service asks whether a delivery will be late. The rows have every kind of column that a table may have, and
missing cells.
"""

import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from esteira import golden

ROWS = 160
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


if __name__ == "__main__":
    made = rows()
    golden.write(Path(__file__).parent / "sample", "tabular", rows=made, broken=broken(made[0]["row"]))
