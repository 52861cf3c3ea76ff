"""What a run's surroundings are: this process and machine, and, as the recipes beside the code say, a cluster's.

Only looks, in a tenth of a second and without kfp; `pipelines.parity` compares. What cannot be seen is None, with a reason.
"""

import ast
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esteira.errors import EsteiraError
from esteira.settings import Settings
from pipelines.code import ROOT, packages
from pipelines.resources import Resources, image_name, read_resources
from pipelines.shape import NAMES

# Locks that a Dockerfile target installs, below requirements/.
LOCKS: Mapping[str, tuple[str, ...]] = {
    "pipeline": ("pipeline.lock",),
    "pipeline-torch": ("pipeline.lock", "torch.lock"),
}
# Besides our own settings: variables that can change how a step computes, or how fast.
LIBRARIES = frozenset(
    {
        "CUDA_VISIBLE_DEVICES", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS",
        "AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SECRET_ACCESS_KEY",
        "PYTHONHASHSEED", "PYTHONOPTIMIZE", "TZ",
    }
)  # fmt: skip
_CONDITIONS = frozenset({"If", "Elif", "Else", "Condition", "OneOf"})
_PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==(?P<version>[^\s;\\]+)(?:\s*;\s*(?P<marker>[^\\\n]+?))?\s*\\?$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Here:
    """This process and its machine.

    Attributes:
        python: whole version, e.g. 3.11.7.
        cpus: cores that this process may use; memory: GiB that it may use; gpus: devices that it may use.
        packages: normalised distribution name -> version.
        revision: commit of the code; dirty: whether tracked files differ from it.
        variables: names of watched variables that are set. Never values.
        reuses: whether the run may reuse what earlier runs left.
        seconds: step -> how long it took, of those that ran.
        images: step -> image of the container that it ran in; None for a run of processes.
    """

    python: str
    system: str
    machine: str
    cpus: float | None
    memory: float | None
    gpus: int | None
    packages: Mapping[str, str]
    revision: str | None
    dirty: bool | None
    variables: frozenset[str]
    reuses: bool = True
    seconds: Mapping[str, float] = field(default_factory=dict)
    images: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Cluster:
    """What the compiled pipeline and the images' recipe give every step.

    Attributes:
        images: step -> image.
        python: major.minor of the images' base.
        pins: step -> what its image installs, name -> version.
        resources: what the family asks for.
        variables: step -> watched variable -> where it comes from.
        conditions: branches of the pipeline, as line numbers and names; empty when only failure ends it.
        reasons: name of an attribute that is None -> why.
    """

    images: Mapping[str, str] | None
    python: str | None
    pins: Mapping[str, Mapping[str, str]] | None
    resources: Resources | None
    variables: Mapping[str, Mapping[str, str]] | None
    conditions: tuple[str, ...] | None
    reasons: Mapping[str, str] = field(default_factory=dict)


def look_here(
    *,
    reuses: bool = True,
    seconds: Mapping[str, float] | None = None,
    images: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    root: Path = ROOT,
) -> Here:
    """Look at this process and machine.

    Args:
        reuses, seconds, images: what only the run knows; see Here.
        environment: None means the process's own.
        root: where the code is.
    """
    set_here = os.environ if environment is None else environment
    revision, dirty = _revision(set_here, root)
    return Here(
        python=platform.python_version(),
        system=platform.system(),
        machine=platform.machine(),
        cpus=_cpus(),
        memory=_memory(),
        # Our containers are given no device.
        gpus=_gpus(set_here) if images is None else 0,
        packages={name: version for name, version in packages().items() if name != "python"},
        revision=revision,
        dirty=dirty,
        variables=watched() & set(set_here),
        reuses=reuses and images is None,
        seconds=dict(seconds or {}),
        images=images,
    )


def look_at_cluster(family: str, *, python: str, machine: str, prefix: str = "localhost", root: Path = ROOT) -> Cluster:
    """Read what a cluster would give a family's steps.

    Args:
        python: of this process; decides between pins where the images' own is not known.
        machine: of this process: an image has the architecture of who built it, and most build at home.
        prefix: registry and folder of the images.
        root: holds Dockerfile, requirements/ and families/.
    """
    reasons: dict[str, str] = {}
    resources: Resources | None = None
    try:
        resources = read_resources(family, root)
    except EsteiraError as error:
        reasons |= dict.fromkeys(("resources", "images", "pins", "variables"), error.message)
    recipe = _read(root / "Dockerfile")
    base = None if recipe is None else re.search(r"^ARG BASE=\S*python:(3\.\d+)", recipe, re.MULTILINE)
    if base is None:
        reasons["python"] = "there is no Dockerfile that names its base as python:3.x"
    images, pins, variables = None, None, None
    if resources is not None:
        targets = {step: resources.target(step) for step in NAMES}
        images = {step: image_name(target, prefix) for step, target in targets.items()}
        texts = {
            name: _read(root / "requirements" / name) for name in {lock for t in targets.values() for lock in LOCKS[t]}
        }
        if absent := sorted(name for name, text in texts.items() if text is None):
            reasons["pins"] = f"there is no requirements/{absent[0]}"
        else:
            marks = image_markers(base[1] if base else python, machine)
            read = {name: read_pins(text or "", marks) for name, text in texts.items()}
            pins = {
                step: {k: v for lock in LOCKS[target] for k, v in read[lock].items()}
                for step, target in targets.items()
            }
        if recipe is None:
            reasons["variables"] = "there is no Dockerfile"
        else:
            variables = {
                step: {
                    **dict.fromkeys(variables_of_image(recipe, target) & watched(), f"image {target}"),
                    **{
                        name: f"{'optional ' if secret.optional else ''}Secret {secret.name}"
                        for secret in resources.secrets
                        if step in secret.steps
                        for name in secret.keys.values()
                    },
                    "ESTEIRA_ACTOR": "the pod's service account",
                }
                for step, target in targets.items()
            }
    dag = _read(Path(__file__).with_name("dag.py"))
    if dag is None:
        reasons["conditions"] = "the pipeline's source is not installed"
    return Cluster(
        images,
        base[1] if base else None,
        pins,
        resources,
        variables,
        None if dag is None else conditions_in(dag),
        reasons,
    )


def watched() -> frozenset[str]:
    """Names of the variables that are looked at: our settings' and some libraries'."""
    ours = {name for told in Settings.model_fields.values() for name in _env_of(told.json_schema_extra)}
    return frozenset(ours | LIBRARIES)


def _env_of(extra: Any) -> list[str]:
    return list(extra.get("env", ())) if isinstance(extra, dict) else []


def image_markers(python: str, machine: str) -> dict[str, str]:
    """The environment that markers see in an image: Linux, CPython, of the given version and architecture.

    Args:
        python: whole, or major.minor, which is taken as its newest patch.
    """
    minor = ".".join(python.split(".")[:2])
    return {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": python if python.count(".") > 1 else f"{minor}.99",
        "python_version": minor,
        "sys_platform": "linux",
        "extra": "",
    }


def read_pins(lock: str, marks: Mapping[str, str]) -> dict[str, str]:
    """What a lock installs where its markers see `marks`: normalised name -> version."""
    from packaging.markers import Marker

    return {
        re.sub(r"[-_.]+", "-", pin["name"]).lower(): pin["version"]
        for pin in _PIN.finditer(lock)
        if not pin["marker"] or Marker(pin["marker"]).evaluate(dict(marks))
    }


def variables_of_image(recipe: str, target: str) -> set[str]:
    """Names that ENV sets in a stage of a Dockerfile and in the stages that it stands on."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", recipe, flags=re.MULTILINE))
    stages: dict[str, set[str]] = {}
    names: set[str] = set()
    for line in text.splitlines():
        if found := re.match(r"FROM\s+(\S+)(?:\s+AS\s+(\S+))?", line):
            names = set(stages.get(found[1], ()))
            stages[found[2] or found[1]] = names
        elif line.startswith("ENV "):
            names |= set(re.findall(r"(?:^|\s)([A-Za-z_]\w*)=", line[3:]))
    return stages.get(target, set())


def conditions_in(source: str) -> tuple[str, ...]:
    """Branches of a kfp pipeline, read from its source: `If (line 12)`; called as `dsl.If` or, imported, as `If`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in _CONDITIONS:
                found.append((node.lineno, name))
    return tuple(f"{name} (line {line})" for line, name in sorted(found))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _revision(environment: Mapping[str, str], root: Path) -> tuple[str | None, bool | None]:
    if told := environment.get("ESTEIRA_CODE_REVISION"):
        return told, told.endswith("-dirty")
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None, None
    lines = done.stdout.splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    return (None if commit == "(initial)" else commit), any(not line.startswith("#") for line in lines)


def _cpus() -> float | None:
    allowed = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota, _, period = (_cgroup("cpu.max") or "max").partition(" ")
    if allowed is None or quota == "max":
        return allowed
    return min(allowed, int(quota) / int(period))


def _memory() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limit = _cgroup("memory.max") or "max"
    return float(total if limit == "max" else min(total, int(limit))) / 2**30


def _cgroup(name: str) -> str | None:
    """A limit of this process's control group (version 2); the root has none."""
    own = next(
        (line[3:] for line in (_read(Path("/proc/self/cgroup")) or "").splitlines() if line.startswith("0::")), "/"
    )
    text = _read(Path("/sys/fs/cgroup") / own.lstrip("/") / name)
    return None if text is None else text.strip()


def _gpus(environment: Mapping[str, str]) -> int | None:
    """NVIDIA devices that this process may use, by their device files; other systems have no such files."""
    if platform.system() != "Linux":
        return None
    present = sum(1 for path in Path("/dev").glob("nvidia[0-9]*"))
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or chosen == "all":
        return present
    return min(
        present, sum(1 for part in chosen.split(",") if part.strip() not in {"", "-1", "none", "void", "NoDevFiles"})
    )
