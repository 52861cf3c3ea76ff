"""The same six steps as kfp components, each named as its step is; a step that ran leaves one output, `out`."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def one(out: dsl.Output[dsl.Dataset]):
    import os
    from pathlib import Path

    Path(out.path).write_text("1", encoding="utf-8")
    with Path(os.environ["NOOP_LOG"]).open("a", encoding="utf-8") as log:
        log.write("1\n")


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def two(before: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Dataset]):
    import os
    from pathlib import Path

    text = f"{Path(before.path).read_text(encoding='utf-8')} 2"
    Path(out.path).write_text(text, encoding="utf-8")
    with Path(os.environ["NOOP_LOG"]).open("a", encoding="utf-8") as log:
        log.write(text + "\n")


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def three(before: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Dataset]):
    import os
    from pathlib import Path

    text = f"{Path(before.path).read_text(encoding='utf-8')} 3"
    Path(out.path).write_text(text, encoding="utf-8")
    with Path(os.environ["NOOP_LOG"]).open("a", encoding="utf-8") as log:
        log.write(text + "\n")


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def four(before: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Dataset]):
    import os
    from pathlib import Path

    text = f"{Path(before.path).read_text(encoding='utf-8')} 4"
    Path(out.path).write_text(text, encoding="utf-8")
    with Path(os.environ["NOOP_LOG"]).open("a", encoding="utf-8") as log:
        log.write(text + "\n")


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def five(before: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Dataset]):
    import os
    from pathlib import Path

    text = f"{Path(before.path).read_text(encoding='utf-8')} 5"
    Path(out.path).write_text(text, encoding="utf-8")
    with Path(os.environ["NOOP_LOG"]).open("a", encoding="utf-8") as log:
        log.write(text + "\n")


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def six(before: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Dataset]):
    import os
    from pathlib import Path

    text = f"{Path(before.path).read_text(encoding='utf-8')} 6"
    Path(out.path).write_text(text, encoding="utf-8")
    with Path(os.environ["NOOP_LOG"]).open("a", encoding="utf-8") as log:
        log.write(text + "\n")


@dsl.pipeline
def chain():
    task = one()
    for step in (two, three, four, five, six):
        task = step(before=task.outputs["out"])
