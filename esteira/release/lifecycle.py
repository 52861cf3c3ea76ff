"""The life of a version: its states, the moves between them that are legal, and each system's own words for them. Values only."""

from collections.abc import Mapping
from enum import StrEnum

from esteira.errors import Refused


class State(StrEnum):
    """Where a version is in its life; one at a time."""

    TRAINING = "training"
    VALIDATED = "validated"
    STAGING = "staging"
    PRODUCTION = "production"
    RETIRED = "retired"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


MOVES: Mapping[State, frozenset[State]] = {
    State.TRAINING: frozenset({State.VALIDATED, State.FAILED}),
    # Straight to production on a line that asks nobody and says `rehearse: false`; every other one goes by staging.
    State.VALIDATED: frozenset({State.STAGING, State.PRODUCTION, State.RETIRED, State.ROLLED_BACK}),
    # Back to validated when another version takes its place in staging.
    State.STAGING: frozenset({State.VALIDATED, State.PRODUCTION, State.RETIRED, State.ROLLED_BACK}),
    State.PRODUCTION: frozenset({State.RETIRED, State.ROLLED_BACK}),
    # What served once may serve again: that is what a roll back does.
    State.RETIRED: frozenset({State.STAGING, State.PRODUCTION}),
    # What was rolled back serves again only after a person staged it again.
    State.ROLLED_BACK: frozenset({State.STAGING, State.RETIRED}),
    State.FAILED: frozenset(),
}
"""State -> states that may follow it. A state may always stay what it is."""

WORDS: Mapping[str, Mapping[State, str]] = {
    # K-05: training, validated, deployed, archived, failed.
    "kryonix": {
        State.TRAINING: "training",
        State.VALIDATED: "validated",
        State.STAGING: "validated",
        State.PRODUCTION: "deployed",
        State.RETIRED: "archived",
        State.FAILED: "failed",
        State.ROLLED_BACK: "archived",
    },
    # F-91: TRAINING -> READY -> ACTIVE -> DEPRECATED, or FAILED.
    "famachat": {
        State.TRAINING: "TRAINING",
        State.VALIDATED: "READY",
        State.STAGING: "READY",
        State.PRODUCTION: "ACTIVE",
        State.RETIRED: "DEPRECATED",
        State.FAILED: "FAILED",
        State.ROLLED_BACK: "DEPRECATED",
    },
    # H-35: MLflow's stages, which Hive-Mind means; aliases stand for them.
    "hivemind": {
        State.TRAINING: "None",
        State.VALIDATED: "None",
        State.STAGING: "Staging",
        State.PRODUCTION: "Production",
        State.RETIRED: "Archived",
        State.FAILED: "None",
        State.ROLLED_BACK: "Archived",
    },
}
"""System -> what it calls each state. Two states may have one word; the way back is `states_of`."""


def legal(before: str, after: str) -> bool:
    """Whether a version may go from one state to another, or stay."""
    return before == after or State(after) in MOVES[State(before)]


def require_move(line: str, version: int, before: str, after: str) -> None:
    """Refuse a move that is not legal.

    Raises:
        Refused: code `illegal_move`.
    """
    if legal(before, after):
        return
    following = ", ".join(sorted(MOVES[State(before)])) or "nothing"
    raise Refused(
        f"after {before} comes {following}, but version {version} would become {after}",
        code="illegal_move",
        where=line,
        cure=f"esteira release stage {line} {version} --reason TEXT"
        if State(before) is State.ROLLED_BACK
        else "choose another version; see `esteira release ls`",
    )


def word(system: str, state: str) -> str:
    """What a system calls a state; KeyError for a system that is none of `WORDS`."""
    return WORDS[system][State(state)]


def states_of(text: str) -> frozenset[str]:
    """The states that a word means in any of the systems, in whatever case; empty when it is nobody's word."""
    wanted = text.strip().casefold()
    ours = {state.value for state in State if state.value == wanted}
    theirs = {
        state.value for words in WORDS.values() for state, own in words.items() if own.casefold() == wanted != "none"
    }
    return frozenset(ours or theirs)
