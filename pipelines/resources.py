"""What a family asks of a cluster: its resources.yaml, read strictly. It asks for nothing itself and imports no kfp."""

from importlib import resources as files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from esteira import __version__, strict_yaml
from esteira.errors import ConfigError
from pipelines.shape import BATCH, NAMES, SEARCH

# Targets of the Dockerfile that a step can run in.
Target = Literal["pipeline", "pipeline-torch"]
# Label of the nodes of a pool; the overlays in manifests/ select by the same one.
POOL_LABEL = "esteira.dev/pool"
GPU = "nvidia.com/gpu"
# Whom the ledger names.
ACTOR = "ESTEIRA_ACTOR"
# Where workers of one search meet.
STUDY_URL = "ESTEIRA_STUDY_URL"

_K8sName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
_Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Toleration(_Frozen):
    """A taint that a step's pod accepts; an empty effect accepts every effect."""

    key: str = Field(min_length=1)
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"

    @model_validator(mode="after")
    def _value_only_where_compared(self) -> "Toleration":
        if (self.operator == "Equal") != bool(self.value):
            raise ValueError("a value goes with operator Equal, and only with it")
        return self


class _Asked(_Frozen):
    """cpu: cores; memory: GiB; gpu: whole devices; timeout: seconds. Asked for and allowed are the same amount."""

    # The least that Kubernetes counts: a thousandth of a core, one MiB.
    cpu: float = Field(ge=0.001, le=512)
    memory: float = Field(ge=0.001, le=8192)
    gpu: int = Field(default=0, ge=0, le=64)
    node_pool: _K8sName = "default"
    timeout: int = Field(gt=0)


class StepResources(_Asked):
    """What one step asks for.

    Attributes:
        timeout: seconds of one try.
        retries: further tries. A cluster repeats whatever failed, so a step that judges has none.
        image: Dockerfile target, where it is not the family's.
        tolerations: besides the one for GPU nodes, which a step with a GPU has anyway.
    """

    retries: int = Field(default=0, ge=0, le=10)
    image: Target | None = None
    tolerations: tuple[Toleration, ...] = ()


class ServingResources(_Asked):
    """What the service asks for; timeout is that of one request."""

    replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _range(self) -> "ServingResources":
        if self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is at least replicas ({self.replicas})")
        return self


def _known_steps(names: tuple[str, ...]) -> tuple[str, ...]:
    known = (*NAMES, SEARCH.name, BATCH.name)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"a step is one of {', '.join(known)}, not {unknown[0]!r}")
    return names


class Secret(_Frozen):
    """A Kubernetes Secret whose keys become environment variables. No value of it is ever in the compiled file.

    Attributes:
        keys: key of the Secret -> variable of the step.
        steps: which steps get it; what `search` gets, train gets too where workers search side by side.
        optional: a pod starts without it; otherwise it waits until the Secret is there.
    """

    name: _K8sName
    keys: dict[str, _Variable] = Field(min_length=1)
    steps: tuple[str, ...] = Field(min_length=1)
    optional: bool = False

    _steps = field_validator("steps")(_known_steps)


class Volume(_Frozen):
    """A claim whose files steps may read as paths, for sources that are files of the cluster."""

    claim: _K8sName
    path: str = Field(pattern=r"^/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$")
    steps: tuple[str, ...] = ("ingest",)

    _steps = field_validator("steps")(_known_steps)

    @field_validator("path")
    @classmethod
    def _ours(cls, path: str) -> str:
        # KFP mounts folders of its own there, /tmp is every step's scratch, and state lies below /var.
        if path.split("/")[1] in {
            "gcs",
            "s3",
            "minio",
            "kfp-launcher",
            "tmp",
            "var",
            "usr",
            "dev",
            "proc",
            "sys",
            "etc",
        }:
            raise ValueError(f"{path} belongs to the system or to KFP; mount below /mnt")
        return path


class Resources(_Frozen):
    """The whole of resources.yaml.

    Attributes:
        image: Dockerfile target of the steps.
        run_as_user: uid and gid of the steps' processes; None leaves it to the image (KFP before 2.17 knows no such field).
    """

    steps: dict[str, StepResources]
    serving: ServingResources
    image: Target = "pipeline"
    run_as_user: int | None = Field(default=None, ge=1)
    secrets: tuple[Secret, ...] = ()
    volumes: tuple[Volume, ...] = ()

    @field_validator("steps")
    @classmethod
    def _all_steps(cls, steps: dict[str, StepResources]) -> dict[str, StepResources]:
        _known_steps(tuple(steps))
        missing = [name for name in NAMES if name not in steps]
        if missing:
            raise ValueError(f"every step says what it asks for, but {', '.join(missing)} does not")
        for name in ("evaluate", "deploy"):
            # Deploy holds the rehearsal: a candidate that is slow twice and not the third time is slow.
            if steps[name].retries:
                raise ValueError(f"{name} is never tried again: a gate that held once has held; set its retries to 0")
        return steps

    @model_validator(mode="after")
    def _each_once(self) -> "Resources":
        """Kubernetes takes the last of two variables and refuses the pod of two mounts, both long after compiling."""
        for step in (*NAMES, SEARCH.name, BATCH.name):
            variables = [name for secret in self.secrets if step in secret.steps for name in secret.keys.values()]
            paths = [volume.path for volume in self.volumes if step in volume.steps]
            for what, names in (("variable", variables), ("path", paths)):
                if twice := [name for name in names if names.count(name) > 1]:
                    raise ValueError(f"step {step} has each {what} once, but {twice[0]} is given twice")
            if ACTOR in variables:
                raise ValueError(f"{ACTOR} is the pod's service account, so no secret gives it to step {step}")
        return self

    def asked(self, step: str) -> StepResources:
        """What a step asks for; a worker of the search, and a batch, what train asks for where nothing else is said of it."""
        return self.steps[step] if step in self.steps else self.steps["train"]

    def target(self, step: str) -> Target:
        """The Dockerfile target that a step runs in."""
        return self.asked(step).image or self.image


def image_name(target: str, prefix: str = "localhost") -> str:
    """The image of a Dockerfile target, of this version of Esteira."""
    return f"{prefix}/esteira-{target}:{__version__}"


def parse(text: str | bytes, where: str) -> Resources:
    """Read the text of a resources.yaml.

    Raises:
        ConfigError: naming the file and the key.
    """
    cure = "correct it; families/tabular/resources.yaml shows every key"
    document: Any = strict_yaml.parse(text, code="bad_resources", where=where, cure=cure)
    try:
        return Resources.model_validate(document if document is not None else {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "(whole)"
        rule = "there is no such key" if first["type"] == "extra_forbidden" else first["msg"]
        rule = rule.removeprefix("Value error, ")
        shown = "" if first["type"] == "missing" else f", but got {str(first['input'])[:200]!r}"
        raise ConfigError(
            f"{key}: {rule[:1].lower()}{rule[1:]}{shown}", code="bad_resources", where=f"{where}, {key}", cure=cure
        ) from error


def read_resources(family: str, root: Path | None = None) -> Resources:
    """What a family asks of a cluster.

    Args:
        root: folder that holds `families/`; None takes the installed families.

    Raises:
        ConfigError: there is no resources.yaml, or it breaks a rule.
    """
    where = f"families/{family}/resources.yaml"
    file = files.files(f"families.{family}") / "resources.yaml" if root is None else root / where
    try:
        text = file.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = "there is no resources.yaml" if missing else f"its resources.yaml cannot be read: {error.strerror}"
        raise ConfigError(
            f"a family says what its steps ask of a cluster, but {what}",
            code="no_resources",
            where=where,
            cure="copy families/tabular/resources.yaml and change its numbers",
        ) from error
    return parse(text, where)
