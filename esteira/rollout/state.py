"""The state of a rollout and what a policy may decide of it. Values only: reading and writing them is `esteira.rollout.files`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from esteira.gate import Outcome, Result
from esteira.rollout.sums import ArmName, Sums

SCHEMA = 1
_NOTHING = Sums()
Status = Literal["running", "paused", "approved", "rolled_back", "inconclusive"]
Action = Literal["hold", "advance", "promote", "roll_back", "inconclusive", "settle"]

LIVE = frozenset({"running", "paused"})
PROMOTED = "champion"
"""The history's word for: the registry made the candidate the champion."""
SETTLED = "settled"
"""The history's word for: the end is carried out, and what splits the traffic is another rollout's from now on."""


@dataclass(frozen=True)
class Side:
    """A version that takes part."""

    version: int
    bundle_id: str


@dataclass(frozen=True)
class Rollout:
    """A rollout of one line, whole: a policy needs nothing else to decide (H-45).

    Attributes:
        test_id: unique; with `salt` it decides which unit goes where.
        line: whose.
        policy: name in `esteira.rollout.policies.POLICIES`.
        champion, challenger: control and candidate.
        status: `running` or `paused`; anything else is its end.
        stage: position in the policy's stages, from 0.
        percent: of the traffic that the candidate takes; 0 once it ended without approval.
        started_at, stage_at: aware, UTC; of the rollout and of the entry into this stage.
        paused_at: since when it is paused; None when it is not.
        paused_seconds: of this stage, before `paused_at`; they do not count as time in the stage (H-42).
        looked_at: of the last decision; time that goes back behind it is no time.
        looks: looks at which this stage could have ended by success, 0 to 4 (H-43).
        pooled_looks: looks at the pooled data.
        negatives: hourly looks in a row that said negative; `judged_at` is when the last one counted.
        pooled_from: first stage whose data are pooled; it moves where the base rate shifted.
        alert: what a person should know while it holds; empty otherwise.
        cooldown_until: no new rollout of this challenger before; None without one.
        options: the policy's own plan, such as a sample size; JSON values.
        sums: stage -> arm -> what it did.
        history: `{"at", "action", "from", "to", "actor", "reason"}`, oldest first.
    """

    test_id: str
    line: str
    policy: str
    champion: Side
    challenger: Side
    salt: str
    started_at: datetime
    stage_at: datetime
    status: Status = "running"
    stage: int = 0
    percent: float = 0.0
    paused_at: datetime | None = None
    paused_seconds: float = 0.0
    looked_at: datetime | None = None
    looks: int = 0
    pooled_looks: int = 0
    negatives: int = 0
    judged_at: datetime | None = None
    pooled_from: int = 0
    alert: str = ""
    cooldown_until: datetime | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sums: Mapping[int, Mapping[ArmName, Sums]] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()

    def arm(self, name: ArmName, stage: int | None = None) -> Sums:
        """What an arm did in a stage, the present one by default."""
        return self.sums.get(self.stage if stage is None else stage, {}).get(name, _NOTHING)

    def seconds(self, now: datetime) -> float:
        """Seconds in this stage, pauses left out; never negative, whatever the clock does."""
        until = now if self.paused_at is None else min(now, self.paused_at)
        return max(0.0, (until - self.stage_at).total_seconds() - self.paused_seconds)

    def with_sums(self, sums: Mapping[int, Mapping[ArmName, Sums]]) -> "Rollout":
        """The same with these sums in the place of the former."""
        return self.changed({"sums": sums})

    def changed(self, values: Mapping[str, Any]) -> "Rollout":
        """The same with other values of some fields. As `replace`, which takes a third of a look's time: a simulation makes millions."""
        if not values.keys() <= self.__dict__.keys():
            raise TypeError(f"a rollout has no {', '.join(sorted(values.keys() - self.__dict__.keys()))}")
        after = object.__new__(Rollout)
        after.__dict__.update(self.__dict__)
        after.__dict__.update(values)
        return after


@dataclass(frozen=True)
class Decision:
    """What a policy decided at a look.

    Attributes:
        action: `hold` keeps the share; `advance` takes the next; `promote` makes the candidate the champion; `roll_back`
            and `inconclusive` take all traffic from it.
        percent: of the traffic that the candidate takes from now on.
        outcome: PASS when it may go on, FAIL when it must go back, NO_DATA when there is not enough to say; NO_DATA never advances.
        reason: in words, with numbers.
        findings: the rules that were looked at, in the gate's words (moment `canary`).
        state: the rollout after this look, bookkeeping and history included; status and percent are those that the action asks for.
    """

    action: Action
    percent: float
    outcome: Outcome
    reason: str
    findings: tuple[Result, ...]
    state: Rollout


class Policy(Protocol):
    """How a rollout is decided. Pure: the same state at the same time gives the same decision."""

    name: str

    @property
    def stages(self) -> tuple[float, ...]:
        """Percent of the traffic that the candidate takes in each stage, ascending."""
        ...

    def decide(self, state: Rollout, now: datetime) -> Decision:
        """What to do at this moment. `now` is aware; a paused or ended rollout always holds."""
        ...


def is_settled(state: Rollout) -> bool:
    """Whether an end is carried out, to its last alias."""
    return any(entry.get("action") == SETTLED for entry in state.history)


def under_way(state: Rollout) -> bool:
    """Whether the candidate may yet get traffic or the championship by this state. Pure."""
    return state.status in LIVE or (state.status == "approved" and promoted_at(state) is None)


def last_decided(state: Rollout) -> Mapping[str, Any]:
    """The history's line of the last thing that was decided of a rollout, which is its end once it ended; empty where nothing was."""
    told = (entry for entry in reversed(state.history) if entry.get("action") not in {PROMOTED, SETTLED})
    return next(told, {})


def why_ended(state: Rollout) -> str:
    """The reason of the last thing that was decided of a rollout, in its own words; empty where nothing was."""
    return str(last_decided(state).get("reason", ""))


def ended_at(state: Rollout) -> datetime | None:
    """When a rollout ended; None while it is live, or where its history does not tell."""
    at = None if state.status in LIVE else last_decided(state).get("at")
    return None if not at else datetime.fromisoformat(str(at))


def promoted_at(state: Rollout) -> datetime | None:
    """When the registry made the candidate the champion; None before."""
    for entry in reversed(state.history):
        if entry.get("action") == PROMOTED:
            return datetime.fromisoformat(entry["at"])
    return None


def taken_before(before: Rollout | None, after: Rollout) -> float:
    """What the candidate took before a move; of another test's candidate, nothing."""
    return before.percent if before is not None and before.test_id == after.test_id else 0.0
