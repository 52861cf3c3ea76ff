"""How a line's releases go: who is asked, and whether traffic moves at once or by shares. It decides nothing and moves nothing.

A family says what holds for its lines, params.yaml what differs: section `deploy` of the family's block, then of the line's own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esteira import strict_yaml
from esteira.errors import ConfigError
from esteira.family import Line, load_family
from esteira.settings import Settings

ApprovalMode = Literal["required", "notify", "automatic"]
Traffic = Literal["staged", "direct"]
PolicyName = Literal["rules", "sequential", "thresholds", "ab", "flags"]

PARAMS = Path("params.yaml")
"""Seen from the working folder, as `esteira run` sees it."""


class Asked(BaseModel):
    """What a line may say of its releases; None leaves it to the family.

    Attributes:
        approval_mode: `required` waits for an approver, `notify` goes on and leaves a notice, `automatic` goes on.
        rollout: `staged` gives a new version its traffic by shares, `direct` all at once.
        rollout_policy: by which rules the shares grow.
        approval_hours: how long an approval counts (S-40: 168; H-52: 72).
        rehearse: whether logged requests are replayed in the real server before (S-20); None does unless the line is automatic
            and direct.
        min_samples: training rows without which no rollout starts (H-39).
        rollout_options: the rollout policy's own plan, such as a smallest effect.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    approval_mode: ApprovalMode | None = None
    rollout: Traffic | None = None
    rollout_policy: PolicyName = "rules"
    approval_hours: float = Field(default=168.0, gt=0, le=24 * 365)
    rehearse: bool | None = None
    min_samples: int = Field(default=10_000, ge=0)
    rollout_options: dict[str, Any] = Field(default_factory=dict)


class ReleasePolicy(BaseModel):
    """What holds for a line; every field as in `Asked`, decided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    approval_mode: ApprovalMode
    rollout: Traffic
    rollout_policy: PolicyName
    approval_hours: float
    rehearse: bool
    min_samples: int
    rollout_options: dict[str, Any]

    @classmethod
    def of(cls, asked: Asked, *, approval_mode: ApprovalMode, rollout: Traffic) -> Self:
        """What was asked for, with the family's words where nothing was."""
        mode, traffic = asked.approval_mode or approval_mode, asked.rollout or rollout
        at_once = mode == "automatic" and traffic == "direct"
        return cls(
            **{
                **asked.model_dump(include=set(cls.model_fields)),
                "approval_mode": mode,
                "rollout": traffic,
                "rehearse": not at_once if asked.rehearse is None else asked.rehearse,
            }
        )


def decided(asked: Asked, line: str) -> ReleasePolicy:
    """What holds for a line that asks for this. A family that says nothing is `required` and `staged`.

    Raises:
        ConfigError: there is no such family, or its words are none of these.
    """
    name = Line.parse(line).family
    family = load_family(name)
    try:
        said = Asked(
            approval_mode=getattr(family, "approval_mode", "required"), rollout=getattr(family, "rollout", "staged")
        )
    except ValidationError as error:
        raise _refusal(error, f"families/{name}") from error
    assert said.approval_mode is not None
    assert said.rollout is not None
    return ReleasePolicy.of(asked, approval_mode=said.approval_mode, rollout=said.rollout)


def policy_of(line: str, settings: Settings, *, params: Path = PARAMS) -> ReleasePolicy:  # noqa: ARG001 - see Args
    """What holds for a line by params.yaml; an absent file says nothing.

    Args:
        settings: of this process; none of them says anything of it yet, and who asks has them at hand.

    Raises:
        ConfigError: params.yaml is no YAML or says something that is not to be said, or there is no such family.
    """
    document: Any = {}
    if params.is_file():
        document = strict_yaml.parse(params.read_bytes(), code="bad_params", where=str(params), cure="correct it")
    parsed = Line.parse(line)
    said = {
        **_section(document, "families", parsed.family),
        **_section(document, "lines", str(parsed)),
    }
    try:
        asked = Asked.model_validate({key: value for key, value in said.items() if key in Asked.model_fields})
    except ValidationError as error:
        raise _refusal(error, str(params)) from error
    return decided(asked, line)


def _section(document: Any, kind: str, name: str) -> Mapping[str, Any]:
    found = document
    for key in (kind, name, "deploy"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _refusal(error: ValidationError, where: str) -> ConfigError:
    first = error.errors(include_url=False)[0]
    return ConfigError(
        f"deploy.{'.'.join(map(str, first['loc']))}: {first['msg']}, but got {str(first['input'])[:100]!r}",
        code="bad_params",
        where=where,
        cure="`esteira step deploy --help` lists the parameters",
    )
