"""Six steps in a row, as a Prefect flow whose tasks are cached by their source and inputs: `python flow.py`."""

import os
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import INPUTS, TASK_SOURCE


# Prefect's default policy holds within one run only; this is the documented one that holds from run to run.
@task(cache_policy=TASK_SOURCE + INPUTS, persist_result=True, result_serializer="json")
def step(number: int, before: str = "") -> str:
    text = f"{before} {number}".strip()
    Path("out").mkdir(exist_ok=True)
    Path(f"out/{number}.txt").write_text(text, encoding="utf-8")
    with Path(os.environ["NOOP_LOG"]).open("a", encoding="utf-8") as log:
        log.write(text + "\n")
    return text


@flow
def chain() -> str:
    text = ""
    for number in range(1, 7):
        text = step(number, text)
    return text


if __name__ == "__main__":
    chain()
