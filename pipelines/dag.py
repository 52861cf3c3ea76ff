"""The release pipeline in its kfp form, chained as `pipelines.shape` says. Compiled, submitted and run here alike.

`release` is what runs here; `build` makes the same pipeline with what its steps ask of a cluster. It compiles nothing.
"""

from typing import Any

from kfp import dsl
from kfp.dsl import Dataset, Input

from pipelines import ops
from pipelines.resources import ACTOR, GPU, POOL_LABEL, Resources, image_name
from pipelines.shape import BATCH, SEARCH, STEPS

# Where a step writes besides its outputs, for which KFP mounts folders of its own: name of the volume -> folder in the image.
WRITABLE = {"tmp": "/tmp", "state": "/var/lib/esteira"}
# Waiting for a node, pulling the image: what a try may take besides its own time.
_START = 900
_PAUSE = 30


def build(resources: Resources | None = None, prefix: str = "localhost", workers: int = 1) -> Any:
    """The pipeline as a kfp pipeline function.

    Args:
        resources: what its steps ask of a cluster; None for a run here, where nobody would be asked.
        prefix: registry and folder of the images.
        workers: that make trials of the search side by side before train ends it; with 1, train makes them all.
    """

    # Made before, because kfp lets no pipeline be made within another.
    workers_of = _side_by_side(workers, resources, prefix) if workers > 1 else None

    @dsl.pipeline(name="esteira-release", display_name="Esteira release")
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
        """From raw rows to a judged, registered and deployed model line. A held gate fails the run; what served still serves.

        Args:
            line: Model line, FAMILY or FAMILY@NAME.
            source: Where the rows come from: s3://bucket/key, a database URL without password, or a path that the pods mount.
            target: Column that holds the label.
            seed: Seed of every random step, 0 to 2147483647. The same seed and rows give the same model.
            run_id: Name of the run in registry and ledger. On a cluster it is KFP's own.
            champion: What the new model is compared with: @champion resolves in the registry, empty compares with none.
            ingest: Parameters of step ingest, as in params.yaml; what is not said has its default.
            validate: Parameters of step validate, such as {"allow_leak": ["column"]}.
            featurize: Parameters of step featurize.
            train: Parameters of step train, such as {"trials": 20}.
            evaluate: Parameters of step evaluate, such as {"profile": "strict"}.
            register: Parameters of step register.
            deploy: Parameters of step deploy.
        """
        arguments: dict[str, Any] = dict(locals())
        if resources is not None:
            # A task's own argument, because KFP does not look for placeholders in a pipeline's parameters.
            arguments["run_id"] = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        _chain(arguments, resources, prefix, workers_of)

    if resources is not None:
        del release.pipeline_spec.root.input_definitions.parameters["run_id"]
    return release


def build_batch(resources: Resources, prefix: str = "localhost") -> Any:
    """The pipeline of one step that answers rows in bulk, as a kfp pipeline function.

    Args:
        resources: what the step asks of a cluster.
        prefix: registry and folder of the images.
    """

    @dsl.pipeline(name="esteira-batch", display_name="Esteira batch")
    def answers(
        line: str,
        source: str,
        destination: str,
        champion: str = "@champion",
        batch: dict = {},  # noqa: B006 - kfp reads the default and never changes it
    ) -> None:
        """Every row of a source answered by a line's champion, in parts with checkpoints.

        Args:
            line: Model line, FAMILY or FAMILY@NAME.
            source: Where the rows are: s3://bucket/key, s3://bucket/folder/, or a path that the pod mounts.
            destination: Where the parts go: s3://bucket/prefix, or a path that the pod mounts. The same one again goes on.
            champion: What answers: @champion resolves in the registry.
            batch: Parameters of step batch, such as {"keep": ["customer_id"], "rows_per_part": 20000}.
        """
        given = {"line": line, "source": source, "destination": destination, "champion": champion}
        task = ops.batch(params=batch, **{name: given[name] for name in BATCH.takes})
        task.set_display_name(BATCH.title)
        task.set_caching_options(False)
        _ask(task, BATCH.name, resources, prefix)

    return answers


def _chain(arguments: dict[str, Any], resources: Resources | None, prefix: str, workers: Any) -> None:
    """One step after the other; a step receives its own section of params.yaml and the folders of the steps it needs."""
    tasks: dict[str, Any] = {}
    for step in STEPS:
        searched = None
        if step.name == "train" and workers is not None:
            searched = workers(
                params=arguments["train"],
                **{name: arguments[name] for name in SEARCH.takes},
                **{name: tasks[needed].outputs["out"] for name, needed in SEARCH.needs.items()},
            )
            searched.set_display_name("Search side by side")
            searched.set_caching_options(False)
        task = getattr(ops, step.name)(
            params=arguments[step.name],
            **{name: arguments[name] for name in step.takes},
            **{name: tasks[needed].outputs["out"] for name, needed in step.needs.items()},
        )
        task.set_display_name(step.title)
        # A changed file under an unchanged name is a false hit of kfp's own cache.
        task.set_caching_options(False)
        if resources is not None:
            _ask(task, step.name, resources, prefix)
        if searched is not None:
            task.after(searched)
            if resources is not None:
                _give_secrets(task, SEARCH.name, resources)
        tasks[step.name] = task


def _side_by_side(workers: int, resources: Resources | None, prefix: str) -> Any:
    """So many workers as a pipeline of its own, because kfp lets no task wait for a loop but within one."""

    @dsl.pipeline(name="search", display_name="Search side by side")
    def search(line: str, seed: int, params: dict, featurized: Input[Dataset], validated: Input[Dataset]) -> None:
        with dsl.ParallelFor(items=list(range(workers)), parallelism=workers, name="workers") as worker:
            task = ops.search(
                line=line, seed=seed, worker=worker, params=params, featurized=featurized, validated=validated
            )
            task.set_display_name(SEARCH.title)
            task.set_caching_options(False)
            if resources is not None:
                _ask(task, SEARCH.name, resources, prefix)

    return search


def _ask(task: Any, step: str, resources: Resources, prefix: str) -> None:
    """Write what a step asks of a cluster into its task and into the platform spec."""
    from kfp import kubernetes

    asked = resources.asked(step)
    memory = f"{round(asked.memory * 1024)}Mi"
    task.set_container_image(image_name(resources.target(step), prefix))
    task.set_cpu_request(f"{asked.cpu:g}").set_cpu_limit(f"{asked.cpu:g}")
    task.set_memory_request(memory).set_memory_limit(memory)
    kubernetes.set_timeout(task, asked.timeout)
    if asked.gpu:
        task.set_accelerator_type(GPU).set_accelerator_limit(asked.gpu)
        # Nodes with GPUs are tainted, so that nothing else takes their place.
        kubernetes.add_toleration(task, key=GPU, operator="Exists", effect="NoSchedule")
    for toleration in asked.tolerations:
        kubernetes.add_toleration(task, **{name: value for name, value in toleration.model_dump().items() if value})
    if asked.node_pool != "default":
        kubernetes.add_node_selector(task, POOL_LABEL, asked.node_pool)
    if asked.retries:
        # The longest duration covers all tries from the first one's start; Argo kills what still runs then (kubeflow/pipelines
        # #13452), so it must hold them all.
        window = sum(asked.timeout + _START + _PAUSE * 2**again for again in range(asked.retries + 1))
        task.set_retry(asked.retries, f"{_PAUSE}s", backoff_factor=2, backoff_max_duration=f"{window}s")
    _give_secrets(task, step, resources)
    for volume in resources.volumes:
        if step in volume.steps:
            kubernetes.mount_pvc(task, volume.claim, volume.path)
    if resources.run_as_user is not None:
        user = resources.run_as_user
        kubernetes.set_security_context(task, run_as_user=user, run_as_group=user, run_as_non_root=True)
    for name, path in WRITABLE.items():
        kubernetes.empty_dir_mount(task, volume_name=name, mount_path=path)
    # The ledger's actor is whom the cluster knows: the service account that the pod runs as.
    kubernetes.use_field_path_as_env(task, env_name=ACTOR, field_path="spec.serviceAccountName")


def _give_secrets(task: Any, step: str, resources: Resources) -> None:
    from kfp import kubernetes

    for secret in resources.secrets:
        if step in secret.steps:
            kubernetes.use_secret_as_env(task, secret.name, dict(secret.keys), optional=secret.optional)


release = build()
