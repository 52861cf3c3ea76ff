"""Six steps in a row, as a kfp pipeline on its local SubprocessRunner: `python pipeline.py`, with `cache` as a word to reuse."""

import sys

from kfp import dsl, local


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def first(out: dsl.Output[dsl.Dataset]):
    import os
    from pathlib import Path

    Path(out.path).write_text("1", encoding="utf-8")
    with Path(os.environ["NOOP_LOG"]).open("a", encoding="utf-8") as log:
        log.write("1\n")


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def following(number: int, before: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Dataset]):
    import os
    from pathlib import Path

    text = f"{Path(before.path).read_text(encoding='utf-8')} {number}"
    Path(out.path).write_text(text, encoding="utf-8")
    with Path(os.environ["NOOP_LOG"]).open("a", encoding="utf-8") as log:
        log.write(text + "\n")


@dsl.pipeline
def chain():
    task = first()
    for number in range(2, 7):
        task = following(number=number, before=task.outputs["out"])


if __name__ == "__main__":
    reuse = {"enable_caching": True, "cache_root": "cache"} if "cache" in sys.argv else {}
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root="out", **reuse)
    chain()
