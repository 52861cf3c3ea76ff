"""Where a run's surroundings differ from the cluster's, so that "works on my laptop" is a statement that can be checked.

`compare` takes what was seen and gives the document of `parity.json`; `write` looks (`pipelines.surroundings`) and writes it.
It changes nothing, forbids nothing, and never reads the value of a variable.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from esteira.family import Line
from esteira.settings import Settings
from pipelines.aspects import ASPECTS, Difference, Finding, Unknown
from pipelines.shape import NAMES
from pipelines.surroundings import Cluster, Here, look_at_cluster, look_here


def compare(here: Here, cluster: Cluster, *, run_id: str, line: str) -> dict[str, Any]:
    """The document of `parity.json`.

    Returns:
        `equal`: aspect -> true, false, or null where it is not known; `differences` and `unknown`: what and why, step by
        step, or with step null where it holds for every step; `checked`: aspect -> what was compared.
    """
    equal: dict[str, bool | None] = {}
    differences: list[dict[str, Any]] = []
    unknown: list[dict[str, Any]] = []
    for aspect, (_, look) in ASPECTS.items():
        found = _merged(list(look(here, cluster)))
        differs = [asdict(one) for one in found if isinstance(one, Difference)]
        open_ = [asdict(one) for one in found if isinstance(one, Unknown)]
        equal[aspect] = False if differs else None if open_ else True
        differences += differs
        unknown += open_
    return {
        "run_id": run_id,
        "line": line,
        "equal": equal,
        "differences": differences,
        "unknown": unknown,
        "checked": [{"aspect": aspect, "what": what} for aspect, (what, _) in ASPECTS.items()],
    }


def write(
    folder: Path,
    *,
    run_id: str,
    line: str,
    settings: Settings,
    reuses: bool = True,
    seconds: Mapping[str, float] | None = None,
    images: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Look, compare, and write `parity.json` into a run's folder.

    Args:
        reuses: False for a run that was asked to run every step afresh.
        seconds: step -> how long it took, or had taken where it is reused; steps that were not reached are left out.
        images: step -> image of the container that it ran in; None for a run of processes.
        environment: None means the process's own.

    Returns:
        The document.
    """
    here = look_here(reuses=reuses, seconds=seconds, images=images, environment=environment)
    family = Line.parse(line).family
    cluster = look_at_cluster(family, python=here.python, machine=here.machine, prefix=settings.image_prefix)
    document = compare(here, cluster, run_id=run_id, line=line)
    temporary = folder / "parity.tmp"
    temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(folder / "parity.json")
    return document


def summary(document: Mapping[str, Any]) -> str:
    """One line, and a second one where something may change a result."""
    equal = document["equal"]
    same = sum(value is True for value in equal.values())
    open_ = [aspect for aspect, value in equal.items() if value is None]
    by = {
        matters: list(dict.fromkeys(one["aspect"] for one in document["differences"] if one["matters"] == matters))
        for matters in ("result", "speed", "no")
    }
    text = f"parity: {same} of {len(equal)} aspects are as on the cluster"
    if open_:
        text += f"; not known: {', '.join(open_)}"
    if by["speed"]:
        text += f"; speed differs: {', '.join(by['speed'])}"
    if by["result"]:
        text += f"\nparity: may change the result: {', '.join(by['result'])}"
    return text


def _merged(found: Sequence[Finding]) -> list[Finding]:
    """What holds for every step, said once with step None; the rest as it is."""
    steps: dict[Finding, set[str | None]] = {}
    for one in found:
        steps.setdefault(replace(one, step=None), set()).add(one.step)
    whole = {general for general, of in steps.items() if None in of or of == set(NAMES)}
    return list(dict.fromkeys(general if (general := replace(one, step=None)) in whole else one for one in found))
