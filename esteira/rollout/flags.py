"""The gradual rollout of S-38: internal users, beta users, all; errors hold it back, a switch ends it. Pure.

Internal and beta users are named units, and beside them a small share of the others by the router, so that a service whose
callers name no users has the three stages too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from esteira.errors import ConfigError
from esteira.gate import Outcome, Result
from esteira.rollout import moves
from esteira.rollout.moves import finding
from esteira.rollout.posterior import error_excess, wilson
from esteira.rollout.rules import errors, outage
from esteira.rollout.state import Decision, Rollout
from esteira.rollout.sums import Sums

PASS, FAIL, NO_DATA = Outcome.PASS, Outcome.FAIL, Outcome.NO_DATA
STAGES = ("internal", "beta", "all")
GROUPS = STAGES[:-1]
MOST_UNITS = 10_000
"""Named units of a group; the split is read again at every change."""


@dataclass(frozen=True)
class Flags:
    """The policy. A stage ends well after its time with the error rate at most half a point above the control's.

    The switch is `esteira rollout rollback`: it clears the split, which a service looks at with every request.

    Attributes:
        stages: percent of the units that are not named: internal, beta, all.
        hours: that each stage takes at least.
        looks, alert_look: as in `esteira.rollout.rules`.
        served: units of the candidate and of the control it takes, >=.
        errors: error rate of the candidate less the control's, <=.
        harm_served: from so many served units on errors go back.
        harm_errors: standard errors beyond `errors`, >; 3.09 is p < 0.001.
    """

    stages: tuple[float, ...] = (1.0, 10.0, 100.0)
    hours: float = 24.0
    looks: int = 4
    alert_look: int = 2
    served: int = 500
    errors: float = 0.005
    harm_served: int = 200
    harm_errors: float = 3.09

    name = "flags"

    def planned(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with their groups looked through: `{"units": {"internal": [...], "beta": [...]}}`, either or none.

        Raises:
            ConfigError: another group, or units that are no texts (`bad_units`).
        """
        said = options.get("units", {})
        if not isinstance(said, Mapping) or not set(said) <= set(GROUPS):
            raise _bad_units(f"units are named for {' and '.join(GROUPS)}, but got {said!r}"[:300])
        for group, units in said.items():
            texts = isinstance(units, Sequence) and not isinstance(units, str) and all(
                isinstance(one, str) and one for one in units
            )  # fmt: skip
            if not texts or len(units) > MOST_UNITS:
                raise _bad_units(f"a group is a list of at most {MOST_UNITS} texts, but {group} is {units!r}"[:300])
        return {**options, "units": {group: sorted(set(said[group])) for group in GROUPS if group in said}}

    def decide(self, state: Rollout, now: datetime) -> Decision:
        """What to do at this moment; pure."""
        kept = moves.still(state)
        if kept is not None:
            return kept
        candidate, control = state.arm("candidate"), self._control(state)
        hourly = moves.hour_due(state, now)
        look = moves.due_look(state, now, self.hours * moves.HOUR, self.looks)
        if not hourly and not look:
            if outage(candidate, control, self.errors, self.harm_served):
                many = errors("error_harm", candidate, control, self.errors, self.harm_served)
                return moves.roll_back(state, now, f"errors: {many.reason}, far beyond chance", (many,))
            if moves.backwards(state, now):
                return moves.clock_back(state, now)
            return moves.hold(state, now, "no look is due")

        looked: dict[str, Any] = {"judged_at": now} if hourly else {}
        harm = self._harm(candidate, control)
        if harm.outcome is FAIL:
            return moves.roll_back(state, now, f"errors: {harm.reason}", (harm,), **looked)
        if not look:
            return moves.hold(state, now, harm.reason, (harm,), **looked)
        found = [
            self._enough(candidate, control),
            errors("error_increase", candidate, control, self.errors, 1),
            *adoption(candidate),
        ]
        unmet = [one.reason for one in found if one.outcome is not PASS]
        where = f"{STAGES[state.stage]} after {state.seconds(now) / moves.HOUR:.1f} h"
        if not unmet:
            reason = f"{where}: {'; '.join(one.reason for one in found)}"
            if state.stage == len(self.stages) - 1:
                return moves.promote(state, now, reason, found, looks=look, **looked)
            return moves.advance(state, now, self.stages[state.stage + 1], reason, found)
        missing = f"{where}, at {look} times the stage's time: {'; '.join(unmet)}"
        if look >= self.looks:
            return moves.inconclusive(state, now, missing, found, looks=look, **looked)
        if look >= self.alert_look:
            looked = {**looked, "alert": missing}
        return moves.hold(state, now, missing, found, outcome=NO_DATA, looks=look, **looked)

    def _control(self, state: Rollout) -> Sums:
        """What the candidate is held against: the control of this stage, where it hardly served that of the stages before too."""
        control = state.arm("control")
        for stage in range(state.stage - 1, -1, -1):
            if control.served >= self.served:
                break
            control = control + state.arm("control", stage)
        return control

    def _harm(self, candidate: Sums, control: Sums) -> Result:
        """Errors that are more than allowed, and not by chance."""
        found = errors("error_harm", candidate, control, self.errors, self.harm_served)
        if found.outcome is NO_DATA:
            return found
        excess, spread = error_excess(candidate, control)
        harmed = excess - self.harm_errors * spread > self.errors
        return found.model_copy(update={"outcome": FAIL if harmed else PASS})

    def _enough(self, candidate: Sums, control: Sums) -> Result:
        n = min(candidate.served, control.served)
        said = f"{candidate.served} units served and {control.served} by the control"
        return finding("served", PASS if n >= self.served else NO_DATA, float(n), ">=", self.served, n, said)


def adoption(candidate: Sums) -> list[Result]:
    """Users who used what they were shown, of those it was shown to: fed back with outcome 1 of served. It holds nothing back.

    Nothing where nobody's use is known. Units must be users, as for an experiment.
    """
    if not candidate.labelled or not candidate.served:
        return []
    used = min(candidate.outcome, float(candidate.served))
    share = used / candidate.served
    said = f"{used:g} of {candidate.served} used it, {100 * share:.3g} %"
    interval = wilson(used, candidate.served)
    return [finding("adoption", PASS, share, ">=", 0.0, candidate.served, said, interval=interval)]


def named(options: Mapping[str, Any], stage: int) -> frozenset[str]:
    """Units that get the candidate by name in this stage: those of its group and of the groups before."""
    groups = options.get("units", {})
    return frozenset(unit for group in GROUPS[: stage + 1] for unit in groups.get(group, ()))


def split_options(state: Rollout) -> dict[str, Any]:
    """What the split says of named units, `{"units": [...]}`; nothing for another policy or where there are none."""
    units = named(state.options, state.stage) if state.policy == Flags.name else frozenset()
    return {"units": sorted(units)} if units else {}


def _bad_units(message: str) -> ConfigError:
    return ConfigError(
        message,
        code="bad_units",
        where="deploy.rollout_options.units",
        cure='such as {"internal": ["ana", "rui"], "beta": []}',
    )
