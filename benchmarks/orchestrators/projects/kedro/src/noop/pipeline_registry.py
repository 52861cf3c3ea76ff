"""Names the pipelines of this project: one chain of six nodes."""

import os
from pathlib import Path

from kedro.pipeline import Pipeline, node


def first() -> str:
    return noted("1")


def following(number: str, before: str) -> str:
    return noted(f"{before} {number}")


def noted(text: str) -> str:
    with Path(os.environ["NOOP_LOG"]).open("a", encoding="utf-8") as log:
        log.write(text + "\n")
    return text


def register_pipelines() -> dict[str, Pipeline]:
    chain = [node(first, None, "text1", name="step1")]
    for number in range(2, 7):
        inputs = [f"params:number{number}", f"text{number - 1}"]
        chain.append(node(following, inputs, f"text{number}", name=f"step{number}"))
    return {"__default__": Pipeline(chain)}
