"""The release pipeline in its kfp form, chained as `pipelines.shape` says. Compiled, submitted and run here alike."""

from typing import Any

from kfp import dsl

from pipelines import ops
from pipelines.shape import STEPS


@dsl.pipeline(name="esteira-release", description="From raw rows to a registered, judged and deployed model line.")
def release(
    line: str,
    source: str,
    target: str,
    seed: int = 42,
    run_id: str = "",
    champion: str = "",
    ingest: dict = {},  # noqa: B006 - kfp reads the default and never changes it
    validate: dict = {},  # noqa: B006
    featurize: dict = {},  # noqa: B006
    train: dict = {},  # noqa: B006
    evaluate: dict = {},  # noqa: B006
    register: dict = {},  # noqa: B006
    deploy: dict = {},  # noqa: B006
) -> None:
    """One step after the other; a step receives its own section of params.yaml and the folders of the steps it needs."""
    arguments: dict[str, Any] = dict(locals())
    tasks: dict[str, Any] = {}
    for step in STEPS:
        task = getattr(ops, step.name)(
            params=arguments[step.name],
            **{name: arguments[name] for name in step.takes},
            **{name: tasks[needed].outputs["out"] for name, needed in step.needs.items()},
        )
        task.set_display_name(step.title)
        # A changed file under an unchanged name is a false hit of kfp's own cache.
        task.set_caching_options(False)
        tasks[step.name] = task
