"""Writes a line's release pipeline for a cluster: KFP's IR YAML, and the same as Kubernetes objects for `kubectl apply`.

The same line, parameters and resources give the same bytes on every machine. It sends nothing anywhere.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esteira.errors import ConfigError
from esteira.family import Line
from esteira.project import Project
from pipelines.plan import Plan, decide
from pipelines.resources import STUDY_URL, Resources, read_resources
from pipelines.shape import SEARCH

# What a run on a cluster is compared with unless somebody says otherwise.
CHAMPION = "@champion"
# What no source and no label can be: stands for "not said yet" while a plan is decided.
_OPEN = "\0"


@dataclass(frozen=True)
class Compiled:
    """One line, compiled.

    Attributes:
        name: of the pipeline in KFP.
        version: of the pipeline, from the content of `ir`: the same content is the same version.
        ir: IR YAML, two documents: pipeline spec and platform spec.
        native: the Kubernetes objects Pipeline and PipelineVersion.
    """

    line: str
    name: str
    version: str
    ir: Path
    native: Path


def pipeline_name(line: Line) -> str:
    """The line's name in KFP: a DNS label, another one for every line."""
    plain = "esteira-" + re.sub(r"[._]", "-", line.registered_name)
    alike = re.search(r"[._]|-$", line.name) or re.search(r"__|_$", line.family) or len(plain) > 100
    return f"{plain[:90].rstrip('-')}-{hashlib.sha256(str(line).encode()).hexdigest()[:8]}" if alike else plain


def defaults(line: str, project: Project) -> Plan:
    """The line's plan by params.yaml; a source or label that it does not say is "" and must be given to each run.

    Raises:
        ConfigError: as `pipelines.plan.decide`.
    """
    plan = decide(line, project=project, last={"source": _OPEN, "target": _OPEN})
    return plan.model_copy(update={name: "" for name in ("source", "target") if getattr(plan, name) == _OPEN})


def write(plan: Plan, folder: Path, *, resources: Resources | None = None, prefix: str = "localhost") -> Compiled:
    """Compile one line's pipeline.

    Args:
        plan: decides the defaults of the pipeline's parameters; a submitter may change them.
        folder: gets `<registered name>.yaml` and `<registered name>.k8s.yaml`, each whole or not at all; created.
        resources: what the steps ask of the cluster; None reads the family's resources.yaml.
        prefix: registry and folder of the images.

    Raises:
        ConfigError: workers of the search are wanted that would not know where to meet.
    """
    from pipelines.dag import build

    line = Line.parse(plan.line)
    # How many pods there are is fixed when the pipeline is compiled; another number is another version of it.
    workers = int(plan.sections.get("train", {}).get("workers", 1))
    resources = resources or read_resources(line.family)
    if workers > 1 and not any(
        SEARCH.name in one.steps and STUDY_URL in one.keys.values() for one in resources.secrets
    ):
        raise ConfigError(
            f"workers of a search know where they meet, but no secret gives {STUDY_URL} to the step {SEARCH.name}",
            code="no_study_url", where=f"families/{line.family}/resources.yaml, secrets",
            cure="add the secret esteira-study as families/tabular/resources.yaml has it, or set train.workers to 1",
        )  # fmt: skip
    pipeline = build(resources, prefix, workers)
    name = pipeline_name(line)
    known = {"source": plan.source, "target": plan.target}
    parameters = {
        "line": plan.line,
        "seed": plan.seed,
        "champion": CHAMPION,
        **{key: value for key, value in known.items() if value},
        **plan.sections,
    }
    return _write(plan.line, pipeline, name, f"Esteira: {plan.line}", parameters, folder / line.registered_name)


def write_batch(line: str, folder: Path, *, resources: Resources | None = None, prefix: str = "localhost") -> Compiled:
    """Compile the pipeline that answers rows in bulk with a line's champion; source and destination are given to each run.

    Args:
        line: `FAMILY` or `FAMILY@NAME`.
        folder: gets `<registered name>.batch.yaml` and `<registered name>.batch.k8s.yaml`; created.
        resources: what the step asks of the cluster; None reads the family's resources.yaml.
        prefix: registry and folder of the images.

    Raises:
        ConfigError: the family has no resources.yaml, or it breaks a rule.
    """
    from pipelines.dag import build_batch

    parsed = Line.parse(line)
    pipeline = build_batch(resources or read_resources(parsed.family), prefix)
    name = f"{pipeline_name(parsed)[:110]}-batch"
    parameters = {"line": line, "champion": CHAMPION}
    return _write(
        line, pipeline, name, f"Esteira batch: {line}", parameters, folder / f"{parsed.registered_name}.batch"
    )


def _write(line: str, pipeline: Any, name: str, title: str, parameters: Mapping[str, Any], stem: Path) -> Compiled:
    """The two files of a pipeline, whose names begin with `stem`."""
    from kfp.compiler import Compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    told: dict[str, Any] = {
        "pipeline_name": name,
        "pipeline_display_name": title,
        "pipeline_parameters": dict(parameters),
        "type_check": True,
    }
    folder = stem.parent
    folder.mkdir(parents=True, exist_ok=True)
    ir = _whole(folder / f"{stem.name}.yaml", lambda path: Compiler().compile(pipeline, path, **told))
    version = f"{name}-{hashlib.sha256(ir.read_bytes()).hexdigest()[:12]}"
    manifest = KubernetesManifestOptions(
        pipeline_name=name,
        pipeline_display_name=title,
        pipeline_version_name=version,
        pipeline_version_display_name=version,
        include_pipeline_manifest=True,
    )
    native = _whole(
        folder / f"{stem.name}.k8s.yaml",
        lambda path: Compiler().compile(
            pipeline, path, **told, kubernetes_manifest_format=True, kubernetes_manifest_options=manifest
        ),
    )
    return Compiled(line, name, version, ir, native)


def _whole(final: Path, compile_to: Callable[[str], None]) -> Path:
    """kfp writes in place; a reader must find the former file or the new one, and nothing else."""
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.tmp.yaml")
    try:
        compile_to(str(temporary))
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    return final
