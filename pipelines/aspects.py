"""What of a run's surroundings is compared with the cluster's, aspect by aspect, and how much each difference matters.

Values in, findings out; `pipelines.surroundings` looks and `pipelines.parity` writes. What cannot be told is Unknown.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pipelines.resources import StepResources
from pipelines.shape import NAMES
from pipelines.surroundings import LOCKS, Cluster, Here

# result: the same rows and parameters may give another model, another verdict, or a failure on one side only.
Matters = Literal["result", "speed", "no"]
# Settings that say where state lies or who acts: another registry holds another champion, so a verdict may differ.
_PLACES = frozenset({"ESTEIRA_ACTOR", "ESTEIRA_CODE_REVISION", "ESTEIRA_HOME", "BENTOML_HOME"})
_SPEED = frozenset({"MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS", "ESTEIRA_WORKERS"})


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same. `step` is None where it holds for every step."""

    aspect: str
    step: str | None
    here: str
    cluster: str
    matters: Matters
    why: str


@dataclass(frozen=True)
class Unknown:
    """One thing that could not be compared, and why. It is never taken as equal."""

    aspect: str
    step: str | None
    why: str


Finding = Difference | Unknown


def _image(here: Here, cluster: Cluster) -> Iterator[Finding]:
    if cluster.images is None:
        yield Unknown("image", None, cluster.reasons["images"])
        return
    for step, image in cluster.images.items():
        ran_in = f"a process of Python {here.python}" if here.images is None else here.images.get(step)
        if ran_in is None:
            yield Unknown("image", step, "the step did not run")
        elif ran_in == image:
            yield Unknown(
                "image", step, f"both are named {image}; a name may be given to other bytes, a digest may not"
            )
        elif here.images is None:
            why = "libraries of the system are the image's there and this machine's here; Python and packages are told apart"
            yield Difference("image", step, ran_in, image, "result", why)
        else:
            yield Difference(
                "image", step, ran_in, image, "result", "another image may hold other code and other packages"
            )


def _of_processes(
    aspect: str, look: Callable[[Here, Cluster], Iterator[Finding]]
) -> Callable[[Here, Cluster], Iterator[Finding]]:
    """An aspect of this process; a step in a container has its image's instead, which is told by the aspect image."""

    def unless_contained(here: Here, cluster: Cluster) -> Iterator[Finding]:
        if here.images is None:
            yield from look(here, cluster)
        else:
            yield Unknown(aspect, None, "steps ran in containers and had their images' own: as equal as the images are")

    return unless_contained


def _python(here: Here, cluster: Cluster) -> Iterator[Finding]:
    if cluster.python is None:
        yield Unknown("python", None, cluster.reasons["python"])
    elif ".".join(here.python.split(".")[:2]) != cluster.python:
        why = "another minor version may compute otherwise; an image can be built on another BASE than its recipe names"
        yield Difference("python", None, here.python, cluster.python, "result", why)


def _system(here: Here, _cluster: Cluster) -> Iterator[Finding]:
    if here.images is None and here.system != "Linux":
        yield Difference("system", None, here.system, "Linux", "result", "the images are Linux")


def _architecture(here: Here, _cluster: Cluster) -> Iterator[Finding]:
    why = f"here {here.machine}; the compiled pipeline asks for no architecture: it is the one that the image was built for"
    yield Unknown("architecture", None, why)


def _packages(here: Here, cluster: Cluster) -> Iterator[Finding]:
    if cluster.pins is None:
        yield Unknown("packages", None, cluster.reasons["pins"])
        return
    for step, pins in cluster.pins.items():
        for name, version in sorted(pins.items()):
            installed = here.packages.get(name)
            if installed is None:
                why = "the image installs it; where a library takes it if it is there, it is not taken here"
                yield Difference("packages", step, f"{name} is not installed", f"{name} {version}", "result", why)
            elif not same_version(installed, version):
                why = "another version may compute otherwise"
                yield Difference("packages", step, f"{name} {installed}", f"{name} {version}", "result", why)
        if extra := sorted(set(here.packages) - set(pins) - {"esteira"}):
            shown = ", ".join(extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
            why = "no step asks for what the image's lock does not hold"
            yield Difference("packages", step, f"{len(extra)} more: {shown}", "not installed", "no", why)


def same_version(installed: str, pinned: str) -> bool:
    """Whether an installed version is the pinned one; a pin without a local part (`+cpu`) takes any."""
    return installed == pinned or ("+" not in pinned and installed.partition("+")[0] == pinned)


def _code(here: Here, _cluster: Cluster) -> Iterator[Finding]:
    if here.dirty:
        commit = (here.revision or "unknown").removesuffix("-dirty")
        why = "the working tree has changes that no commit holds, so nobody can build this image again"
        yield Difference("code", None, f"{commit} and changes", "a commit", "result", why)
    elif here.revision is None:
        yield Unknown("code", None, "here is neither a git checkout nor $ESTEIRA_CODE_REVISION")
    else:
        why = f"here {here.revision}; an image's tag names a version, and its label org.opencontainers.image.revision the commit"
        yield Unknown("code", None, why)


def _asked(
    aspect: str, look: Callable[[Here, str, StepResources], Iterator[Finding]]
) -> Callable[[Here, Cluster], Iterator[Finding]]:
    """An aspect of what a step asks for, step by step; unknown where the family's resources cannot be read."""

    def every(here: Here, cluster: Cluster) -> Iterator[Finding]:
        if cluster.resources is None:
            yield Unknown(aspect, None, cluster.reasons["resources"])
            return
        for step in NAMES:
            yield from look(here, step, cluster.resources.steps[step])

    return every


def _cpu(here: Here, step: str, asked: StepResources) -> Iterator[Finding]:
    if here.cpus is None:
        yield Unknown("cpu", step, "this system does not say how many cores a process may use")
    elif here.cpus != asked.cpu:
        yield Difference(
            "cpu", step, f"{here.cpus:g} cores", f"{asked.cpu:g} cores", "speed", "a step may use no more there"
        )


def _memory(here: Here, step: str, asked: StepResources) -> Iterator[Finding]:
    if here.memory is None:
        yield Unknown("memory", step, "this system does not say how much memory it has")
    elif here.memory > asked.memory:
        why = "a step that needs more than it asked for is killed there, and ends well here"
        yield Difference("memory", step, f"{here.memory:.1f} GiB", f"{asked.memory:g} GiB", "result", why)
    elif here.memory < asked.memory:
        why = "a step that needs what it asked for is slow or killed here, and ends well there"
        yield Difference("memory", step, f"{here.memory:.1f} GiB", f"{asked.memory:g} GiB", "result", why)


def _gpu(here: Here, step: str, asked: StepResources) -> Iterator[Finding]:
    if here.gpus is None:
        yield Unknown("gpu", step, "only Linux shows its NVIDIA devices as files")
    elif here.gpus != asked.gpu:
        alike = bool(here.gpus) == bool(asked.gpu)
        why = "more devices, the same kind of sums" if alike else "a GPU adds in another order, so last digits differ"
        yield Difference("gpu", step, f"{here.gpus} GPUs", f"{asked.gpu} GPUs", "speed" if alike else "result", why)


def _retries(_here: Here, step: str, asked: StepResources) -> Iterator[Finding]:
    if asked.retries:
        why = "a failure from outside ends a run here, and is tried again there; what a step computes is the same"
        yield Difference("retries", step, "0", str(asked.retries), "no", why)


def _timeout(here: Here, step: str, asked: StepResources) -> Iterator[Finding]:
    took = here.seconds.get(step)
    if took is None:
        why = "a step that takes longer is ended there, and not here; this run does not say how long it takes"
        yield Difference("timeout", step, "none", f"{asked.timeout} s", "result", why)
    elif took <= asked.timeout / 2:
        yield Difference("timeout", step, "none", f"{asked.timeout} s", "no", "it took less than half of that here")
    else:
        why = f"it took {took:.0f} s here; what takes longer than it may is ended there"
        yield Difference("timeout", step, "none", f"{asked.timeout} s", "result", why)


def _placement(_here: Here, step: str, asked: StepResources) -> Iterator[Finding]:
    keys = [f"tolerates {toleration.key}" for toleration in asked.tolerations]
    if asked.node_pool != "default" or keys:
        there = ", ".join([f"node pool {asked.node_pool}", *keys])
        yield Difference("placement", step, "this machine", there, "no", "what a step finds there is compared apart")


def _caching(here: Here, _cluster: Cluster) -> Iterator[Finding]:
    if here.reuses:
        why = "a step is reused only where its parameters, data, inputs, code and packages are the same, byte for byte"
        yield Difference("caching", None, "receipts keyed on content", "off", "no", why)


def _conditions(_here: Here, cluster: Cluster) -> Iterator[Finding]:
    if cluster.conditions is None:
        yield Unknown("conditions", None, cluster.reasons["conditions"])
    elif cluster.conditions:
        why = "here a condition that cannot be evaluated counts as false and its branch is skipped, there it fails the run"
        yield Difference("conditions", None, "by kfp's local runner", ", ".join(cluster.conditions), "result", why)


def _environment(here: Here, cluster: Cluster) -> Iterator[Finding]:
    if cluster.variables is None:
        yield Unknown("environment", None, cluster.reasons["variables"])
        return
    for step, there in cluster.variables.items():
        if both := sorted(here.variables & set(there)):
            yield Unknown("environment", step, f"set here and there, and values are never read: {', '.join(both)}")
        sides = {(at, _matters(name)) for name, at in there.items()} | {("", _matters(name)) for name in here.variables}
        for at, matters in sorted(sides):
            only_there = (name for name, by in there.items() if by == at and name not in here.variables)
            names = sorted(
                name for name in (only_there if at else here.variables - set(there)) if _matters(name) == matters
            )
            if names:
                said = ", ".join(names)
                ends = (f"not set: {said}", f"set by {at}") if at else (f"set: {said}", "not set")
                why = {
                    "result": "they may lead to other data, or to another champion to compare with",
                    "speed": "threads",
                }
                yield Difference("environment", step, *ends, matters, why.get(matters, "they name places and people"))


def _matters(variable: str) -> Matters:
    return "speed" if variable in _SPEED else "no" if variable in _PLACES else "result"


# Aspect -> what is compared, for the reader of the document, and how.
ASPECTS: dict[str, tuple[str, Callable[[Here, Cluster], Iterator[Finding]]]] = {
    "image": ("what a step runs in: the image that the compiled pipeline names, and a process", _image),
    "python": ("major.minor of this Python, and of the Dockerfile's BASE", _of_processes("python", _python)),
    "system": ("this operating system, and the images' Linux", _system),
    "architecture": ("this processor's architecture, and the images'", _architecture),
    "packages": (
        f"installed distributions, and the locks of a step's image ({', '.join(LOCKS['pipeline-torch'])})",
        _of_processes("packages", _packages),
    ),
    "code": ("the commit of this code and whether the tree is clean, and the image's", _of_processes("code", _code)),
    "cpu": ("cores that a process may use, and resources.yaml", _asked("cpu", _cpu)),
    "memory": ("memory that a process may use, and resources.yaml", _asked("memory", _memory)),
    "gpu": ("NVIDIA devices, and resources.yaml", _asked("gpu", _gpu)),
    "retries": ("tries after a failure: none here, and resources.yaml", _asked("retries", _retries)),
    "timeout": ("what ends a step that takes too long: nothing here, and resources.yaml", _asked("timeout", _timeout)),
    "placement": ("node pool and tolerations of resources.yaml; here is one machine", _asked("placement", _placement)),
    "caching": ("reuse of what ran before: receipts here, off there", _caching),
    "conditions": (
        "branches in the source of the pipeline; without one, only a failing step ends a run, here and there",
        _conditions,
    ),
    "environment": (
        "names of variables that are set here, by the image and by Secrets; never their values",
        _of_processes("environment", _environment),
    ),
}
