"""Checks a compiled pipeline's structure, document by document; every breach is a finding. It changes nothing and asks no server.

KFP takes most of these breaches without a word and fails, waits or leaks hours later.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from esteira.settings import redact
from pipelines.resources import GPU, STUDY_URL, image_name
from pipelines.shape import BATCH, NAMES, SEARCH, STEPS

# As safe as SafeLoader and ten times as fast, where PyYAML was built with it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TARGETS = ("pipeline", "pipeline-torch")
# Homes of people and folders of build machines; the folders of our images are none of them.
_MACHINE = re.compile(
    r"(?<![\w./:-])(/(?:home|Users|root|mnt/[a-z]/Users|private/var|var/folders)/|[A-Za-z]:\\|file://)"
)


@dataclass(frozen=True)
class Finding:
    """One breach: the rule's name, the place in the file, and what to know."""

    rule: str
    where: str
    message: str

    def to_dict(self) -> dict[str, str]:
        return {"rule": self.rule, "where": self.where, "message": self.message}


def check(ir: Path, native: Path | None = None, *, prefix: str = "localhost") -> list[Finding]:
    """Check what `pipelines.compile.write` left.

    Args:
        ir: IR YAML.
        native: the Kubernetes objects of the same pipeline.
        prefix: registry and folder that the images must come from.
    """
    found = check_text(ir.read_text(encoding="utf-8"), prefix=prefix)
    if native is not None and not found:
        found = _same(ir.read_text(encoding="utf-8"), native.read_text(encoding="utf-8"))
    return found


def check_text(text: str, *, prefix: str = "localhost") -> list[Finding]:
    """Check the text of an IR YAML."""
    try:
        documents = [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.YAMLError as error:
        return [Finding("documents", "file", f"is no YAML: {str(error).splitlines()[0]}")]
    kinds = [
        next((key for key in ("root", "platforms") if isinstance(one, dict) and key in one), "") for one in documents
    ]
    if kinds != ["root", "platforms"]:
        said = (
            f"a pipeline spec and a platform spec belong in it, in this order, but it has {len(documents)} document(s)"
        )
        return [Finding("documents", "file", said)]
    spec, platform = documents
    broken = list(_schema(spec, platform))
    if broken:
        return broken
    asked = platform["platforms"].get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    return [
        *_steps(spec),
        *_workers(spec, asked),
        *_executors(spec, asked, prefix),
        *_tasks(spec, asked),
        *_parameters(spec),
        *_texts(spec, "pipeline spec", asked),
        *_texts(platform, "platform spec", asked),
    ]


def _schema(spec: Mapping[str, Any], platform: Mapping[str, Any]) -> Iterator[Finding]:
    """Every field is one that KFP's own schema knows; the two parts that the schema leaves open are read as what they are."""
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
    from kfp.pipeline_spec import pipeline_spec_pb2 as schema

    parts: list[tuple[str, Any, Any]] = [
        ("pipeline spec", spec, schema.PipelineSpec()),
        ("deploymentSpec", spec.get("deploymentSpec", {}), schema.PipelineDeploymentConfig()),
        ("platform spec", platform, schema.PlatformSpec()),
    ]
    platforms = platform.get("platforms")
    for name, one in platforms.items() if isinstance(platforms, dict) else ():
        if name != "kubernetes":
            yield Finding("schema", f"platforms.{name}", "kubernetes is the only platform")
        executors = one.get("deploymentSpec", {}).get("executors", {}) if isinstance(one, dict) else {}
        for label, config in executors.items():
            parts.append((f"platforms.{name}.{label}", config, kubernetes.KubernetesExecutorConfig()))
    for where, part, message in parts:
        try:
            json_format.ParseDict(part, message, ignore_unknown_fields=False)
        except (json_format.ParseError, TypeError, AttributeError, ValueError) as error:
            yield Finding("schema", where, " ".join(str(error).split())[:300])


def _steps(spec: Mapping[str, Any]) -> Iterator[Finding]:
    tasks = spec["root"].get("dag", {}).get("tasks", {})
    if set(tasks) == {BATCH.name}:  # a pipeline of its own
        return
    together = {SEARCH.name} & set(tasks)
    for name in [name for name in NAMES if name not in tasks] + [
        name for name in tasks if name not in {*NAMES, *together}
    ]:
        yield Finding("steps", f"tasks.{name}", "the tasks are the DAG's steps, no fewer and no more")
    for step in (*STEPS, SEARCH):
        waits = set(tasks.get(step.name, {}).get("dependentTasks", []))
        needs = set(step.needs.values()) | (together if step.name == "train" else set())
        if step.name in tasks and waits != needs:
            yield Finding("steps", f"tasks.{step.name}", f"waits for {sorted(waits)}, needs {sorted(needs)}")


def _workers(spec: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[Finding]:
    """Workers of the search, where there are some, run all at once and know where they meet."""
    if SEARCH.name not in spec["root"].get("dag", {}).get("tasks", {}):
        return
    loops = [task for name, task in _all_tasks(spec) if "parameterIterator" in task]
    items = [str(loop["parameterIterator"].get("items", {}).get("raw", "")) for loop in loops]
    if len(loops) != 1 or not re.fullmatch(r"\[\d+(, \d+)+\]", items[0]):
        yield Finding("workers", "tasks.search", f"it is one loop over two or more numbers, but it loops over {items}")
    elif int(loops[0].get("iteratorPolicy", {}).get("parallelismLimit", 0)) < items[0].count(",") + 1:
        yield Finding("workers", "tasks.search", "fewer of its workers run at once than there are")
    for label in ("exec-search", "exec-train"):
        keys = [key for secret in asked.get(label, {}).get("secretAsEnv", []) for key in secret.get("keyToEnv", [])]
        if not any(key.get("envVar") == STUDY_URL for key in keys):
            yield Finding(
                "workers", label, f"no secret gives it {STUDY_URL}, so it does not know where the workers meet"
            )


def _all_tasks(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tasks of the pipeline and of the pipelines within it."""
    for dag in (spec["root"], *spec.get("components", {}).values()):
        yield from dag.get("dag", {}).get("tasks", {}).items()


def _executors(spec: Mapping[str, Any], asked: Mapping[str, Any], prefix: str) -> Iterator[Finding]:
    ours = {image_name(target, prefix) for target in _TARGETS}
    for label, executor in spec.get("deploymentSpec", {}).get("executors", {}).items():
        container = executor.get("container", {})
        if container.get("image") not in ours:
            said = f"runs in {container.get('image')!r}, which is none of {', '.join(sorted(ours))}"
            yield Finding("image", label, said)
        resources = container.get("resources", {})
        for name in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
            if not resources.get(name):
                yield Finding("resources", label, f"{name} is not said")
        accelerator = resources.get("accelerator")
        if accelerator is not None and not (
            accelerator.get("resourceType") == GPU and int(accelerator.get("resourceCount") or 0) > 0
        ):
            yield Finding(
                "resources", label, f"a GPU is {GPU} and a number of them; one without the other does nothing"
            )
        config = asked.get(label, {})
        if int(config.get("activeDeadlineSeconds", 0)) <= 0:
            yield Finding("timeout", label, "activeDeadlineSeconds is not said, so a pod that hangs hangs for ever")
        yield from _secrets(label, config)


def _secrets(label: str, config: Mapping[str, Any]) -> Iterator[Finding]:
    for secret in config.get("secretAsEnv", []):
        name = secret.get("secretNameParameter", {}).get("runtimeValue", {}).get("constant") or secret.get("secretName")
        keys = secret.get("keyToEnv", [])
        if not name:
            yield Finding("secret", label, "a secret has no name")
        if not keys or not all(key.get("secretKey") and key.get("envVar") for key in keys):
            yield Finding("secret", label, f"secret {name!r}: each key and its variable are named")
    if config.get("secretAsVolume"):
        yield Finding("secret", label, "secrets are variables here, not files")


def _tasks(spec: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[Finding]:
    for name, task in _all_tasks(spec):
        if task.get("cachingOptions", {}).get("enableCache", False):
            yield Finding(
                "cache", f"tasks.{name}", "kfp's cache keys on names, so new data under an old name is a false hit"
            )
        retry = task.get("retryPolicy")
        if retry is None:
            continue
        if name == "evaluate":
            yield Finding("retry", "tasks.evaluate", "a gate that held once has held: no retryPolicy")
        component = spec.get("components", {}).get(task.get("componentRef", {}).get("name", ""), {})
        label = component.get("executorLabel", "")
        tries = int(retry.get("maxRetryCount", 0)) + 1
        needed = tries * int(asked.get(label, {}).get("activeDeadlineSeconds", 0))
        if _seconds(retry.get("backoffMaxDuration", "0s")) < needed:
            said = f"backoffMaxDuration is {retry.get('backoffMaxDuration')}, but {tries} tries may take {needed}s: later ones die"
            yield Finding("retry", f"tasks.{name}", said)


def _parameters(spec: Mapping[str, Any]) -> Iterator[Finding]:
    offered = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    used: set[str] = set()
    for name, task in spec["root"].get("dag", {}).get("tasks", {}).items():
        component = spec.get("components", {}).get(task.get("componentRef", {}).get("name", ""), {})
        given = task.get("inputs", {})
        for kind in ("parameters", "artifacts"):
            for wanted, definition in component.get("inputDefinitions", {}).get(kind, {}).items():
                if wanted not in given.get(kind, {}) and not definition.get("isOptional", False):
                    yield Finding("parameters", f"tasks.{name}", f"{wanted} is needed and not given")
        for wanted, source in given.get("parameters", {}).items():
            parameter = source.get("componentInputParameter")
            if parameter is not None and parameter not in offered:
                yield Finding("parameters", f"tasks.{name}.{wanted}", f"the pipeline has no parameter {parameter!r}")
            used.add(parameter or "")
    for parameter in offered:
        if parameter not in used:
            yield Finding("parameters", f"root.{parameter}", "no task reads it")


def _texts(document: Any, where: str, asked: Mapping[str, Any]) -> Iterator[Finding]:
    """No text names a folder of somebody's machine or holds a password."""
    mounted = tuple(
        str(volume["mountPath"]).rstrip("/") + "/" for one in asked.values() for volume in one.get("pvcMount", [])
    )
    here = tuple(place for place in {str(Path.home()), os.getcwd()} if len(place) > 5)  # noqa: PTH109 - a text
    for place, text in _strings(document, where):
        if redact(text) != text:
            yield Finding("password", place, f"a password stands in the clear: {redact(text)[:120]}")
        default = place.startswith("pipeline spec.root.inputDefinitions")
        bare = default and re.match(r"[/~]", text) and not f"{text}/".startswith(mounted)
        if bare or _MACHINE.search(text) or any(f"{folder}/" in text for folder in here):
            line = next((line for line in text.splitlines() if _MACHINE.search(line) or "/" in line), text)
            yield Finding(
                "local_path", place, f"a path of one machine means nothing on another: {line.strip()[:120]!r}"
            )


def _strings(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(inner, f"{place}.{key}")
    elif isinstance(value, Sequence):
        for number, inner in enumerate(value):
            yield from _strings(inner, f"{place}.{number}")


def _same(ir: str, native: str) -> list[Finding]:
    """The Kubernetes objects are the same pipeline."""
    spec, platform = yaml.load_all(ir, _Loader)
    objects = {document.get("kind"): document for document in yaml.load_all(native, _Loader) if document}
    if set(objects) != {"Pipeline", "PipelineVersion"}:
        return [
            Finding("native", "file", f"Pipeline and PipelineVersion belong in it, not {sorted(map(str, objects))}")
        ]
    version = objects["PipelineVersion"]["spec"]
    if (version.get("pipelineSpec"), version.get("platformSpec")) != (spec, platform):
        return [Finding("native", "PipelineVersion", "its pipeline is another than the IR's")]
    if version.get("pipelineName") != objects["Pipeline"]["metadata"]["name"]:
        return [Finding("native", "PipelineVersion", "it names another Pipeline")]
    return []


def _seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)s", duration)
    return float(match[1]) if match else 0.0
