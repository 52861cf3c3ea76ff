"""What is sent to Kubeflow Pipelines and what comes back, as plain values: parameters, sources, schedules. It sends nothing."""

import re
from collections.abc import Sequence
from typing import Any

from esteira.errors import ConfigError
from esteira.settings import redact
from pipelines.compile import CHAMPION
from pipelines.plan import Plan
from pipelines.resources import Volume


def parameters(plan: Plan) -> dict[str, Any]:
    """The parameters of a run, all of them, so that a run says by itself what it was asked."""
    told = {"line": plan.line, "source": plan.source, "target": plan.target, "seed": plan.seed, "champion": CHAMPION}
    return {**told, **plan.sections}


def check_source(source: str, volumes: Sequence[Volume] = (), *, allow_local: bool = False) -> None:
    """Refuse a source that pods cannot read, or that would leave a password in KFP's database.

    Args:
        volumes: what the family mounts; a path below one of them is readable.
        allow_local: the caller knows that the path exists in the pods.

    Raises:
        ConfigError: with the cure.
    """
    if redact(source) != source:
        raise ConfigError(
            f"a source holds no password, because KFP keeps and shows every parameter, but got {redact(source)!r}",
            code="password_in_source",
            where="--source",
            cure="leave the password out and give PGPASSWORD to step ingest by a secret in the family's resources.yaml",
        )
    scheme, _, rest = source.partition("://")
    path = source if not rest else rest if scheme == "file" else rest.partition("/")[2] if "sqlite" in scheme else ""
    at_home = re.match(r"([^/@]*@)?(localhost|127\.\d+\.\d+\.\d+|\[::1\])([:/]|$)", rest) and scheme != "s3"
    mounted = any(path == volume.path or path.startswith(volume.path + "/") for volume in volumes)
    if allow_local or mounted or not (path or at_home):
        return
    raise ConfigError(
        f"a cluster reads its rows by s3:// or a database URL, or from a mounted volume, but got {source!r} of this machine",
        code="local_source",
        where="--source",
        cure="upload the rows and give --source s3://bucket/key; or mount a claim below `volumes` in the family's"
        " resources.yaml; or --allow-local-source where the pods have this very path",
    )


def cron_of(text: str) -> str:
    """KFP's six-field cron of a usual five-field one: KFP would read five fields as beginning with seconds.

    Raises:
        ConfigError: neither five nor six fields nor an `@word`.
    """
    fields = text.split()
    if text.startswith("@") or len(fields) == 6:
        return " ".join(fields)
    if len(fields) == 5:
        return " ".join(["0", *fields])
    raise ConfigError(
        f"a schedule has five fields (minute hour day month weekday), six with seconds first, or is @daily, but got {text!r}",
        code="bad_schedule",
        where="--schedule",
        cure="for example --schedule '30 3 * * *' for every day at 03:30",
    )
