"""How a line's releases go: who is asked, and whether traffic moves at once or by shares. It decides nothing and moves nothing.

A family says what holds for its lines, params.yaml what differs: section `deploy` of the family's block, then of the line's own.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esteira.errors import ConfigError
from esteira.family import Line, load_family
from esteira.project import PARAMS, read_project

ApprovalMode = Literal["required", "notify", "automatic"]
Traffic = Literal["staged", "direct"]
PolicyName = Literal["rules", "sequential", "thresholds", "ab", "flags"]

_STRICTEST: tuple[ApprovalMode, ...] = ("required", "notify", "automatic")


class Asked(BaseModel):
    """The section `deploy` of params.yaml: how a version is put into service. What is not said is the family's.

    Attributes:
        approval_mode: `required` waits for an approver, `notify` goes on and leaves a notice, `automatic` goes on; None is the
            family's.
        rollout: `staged` gives a new version its traffic by shares, `direct` all at once; None is the family's.
        rollout_policy: by which rules the shares grow.
        approval_hours: how long an approval counts, at most 168 (S-40); H-52 asks for 72.
        rehearse: run it in staging before: logged requests are replayed in the real server (S-20). A line that says no is released
            without, and its record says so.
        min_samples: training rows without which no rollout starts (H-39).
        rollout_options: the rollout policy's own plan, such as a smallest effect.
        alias: what is wanted: champion goes by the line's policy, the others move that alias and nothing else.
        reason: why, for the ledger.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    approval_mode: ApprovalMode | None = None
    rollout: Traffic | None = None
    rollout_policy: PolicyName = "rules"
    approval_hours: float = Field(default=168.0, gt=0, le=168)
    rehearse: bool = True
    min_samples: int = Field(default=10_000, ge=0)
    rollout_options: dict[str, Any] = Field(default_factory=dict)
    alias: Literal["champion", "challenger", "staging"] = "champion"
    reason: str = Field(default="the gate released it", min_length=1, max_length=500)


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
        return cls(
            **{
                **asked.model_dump(include=set(cls.model_fields)),
                "approval_mode": asked.approval_mode or approval_mode,
                "rollout": asked.rollout or rollout,
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


def policy_of(line: str, *, params: Path = PARAMS) -> ReleasePolicy:
    """What holds for a line by params.yaml, read as a run of the line reads it; an absent file says nothing.

    Raises:
        ConfigError: params.yaml is no YAML or says something that means nothing, or there is no such family.
    """
    return decided(_asked(line, params), line)


def stricter(one: ReleasePolicy, other: ReleasePolicy) -> ReleasePolicy:
    """Of each word the stricter; by which rules shares grow, of which none is, as the first says. Pure."""
    return one.model_copy(
        update={
            "approval_mode": min(one.approval_mode, other.approval_mode, key=_STRICTEST.index),
            "rollout": "staged" if "staged" in (one.rollout, other.rollout) else "direct",
            "approval_hours": min(one.approval_hours, other.approval_hours),
            "rehearse": one.rehearse or other.rehearse,
            "min_samples": max(one.min_samples, other.min_samples),
        }
    )


def in_force(line: str, recorded: ReleasePolicy | None, *, params: Path = PARAMS) -> ReleasePolicy:
    """What a version is held to now: what stands with its registration or request, and what params.yaml here says beyond that.

    Args:
        recorded: None where nothing was; then the line's own word is all there is.
        params: what it leaves out is not held against what is recorded, as it may be another project's.

    Raises:
        ConfigError: as `policy_of`.
    """
    asked = _asked(line, params)
    if recorded is None:
        return decided(asked, line)
    said = {name: getattr(asked, name) for name in asked.model_fields_set & set(ReleasePolicy.model_fields)}
    here = {name: value for name, value in said.items() if value is not None}
    return stricter(recorded, recorded.model_copy(update=here))


def _asked(line: str, params: Path) -> Asked:
    parsed = Line.parse(line)
    try:
        return Asked.model_validate(read_project(params).block(parsed.family, str(parsed)).deploy)
    except ValidationError as error:
        raise _refusal(error, str(params)) from error


def _refusal(error: ValidationError, where: str) -> ConfigError:
    first = error.errors(include_url=False)[0]
    return ConfigError(
        f"deploy.{'.'.join(map(str, first['loc']))}: {first['msg']}, but got {str(first['input'])[:100]!r}",
        code="bad_params",
        where=where,
        cure="`esteira step deploy --help` lists the parameters",
    )
