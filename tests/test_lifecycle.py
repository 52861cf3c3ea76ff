"""The life of a version: which state may follow which, and what each of the systems that this one replaces calls it."""

from itertools import product

import pytest

from esteira.errors import ConfigError, Refused
from esteira.registry import catalogue
from esteira.release.lifecycle import MOVES, WORDS, State, legal, require_move, states_of, word
from esteira.store.tables import VERSION_STATES

# DESIGN 6, written out.
LEGAL = {
    ("training", "validated"), ("training", "failed"),
    ("validated", "staging"), ("validated", "production"), ("validated", "retired"), ("validated", "rolled_back"),
    ("staging", "validated"), ("staging", "production"), ("staging", "retired"), ("staging", "rolled_back"),
    ("production", "retired"), ("production", "rolled_back"),
    ("retired", "staging"), ("retired", "production"),
    ("rolled_back", "staging"), ("rolled_back", "retired"),
}  # fmt: skip


def test_the_states_are_those_of_the_store() -> None:
    assert set(VERSION_STATES) == {state.value for state in State} == {state.value for state in MOVES}


@pytest.mark.parametrize(("before", "after"), list(product(VERSION_STATES, VERSION_STATES)))
def test_a_move_is_legal_where_the_table_says_so(before: str, after: str) -> None:
    assert (before == after or (before, after) in LEGAL) == legal(before, after)


def test_an_illegal_move_says_what_may_follow() -> None:
    """F-91, in part: illegal moves (FAILED -> ACTIVE) are refused."""
    with pytest.raises(Refused) as caught:
        require_move("tabular", 3, "failed", "production")

    assert ("illegal_move", "tabular") == (caught.value.code, caught.value.where)
    assert "after failed comes nothing, but version 3 would become production" == caught.value.message
    assert "ACTIVE" == word("famachat", "production")
    assert "FAILED" == word("famachat", "failed")


@pytest.mark.parametrize("system", WORDS)
def test_every_system_has_a_word_for_every_state(system: str) -> None:
    assert set(State) == set(WORDS[system])


def test_the_words_are_those_of_the_requirements() -> None:
    """K-05, F-91 and H-35, in part: each system finds its own states."""
    assert {"training", "validated", "deployed", "archived", "failed"} == set(WORDS["kryonix"].values())
    assert {"TRAINING", "READY", "ACTIVE", "DEPRECATED", "FAILED"} == set(WORDS["famachat"].values())
    assert {"None", "Staging", "Production", "Archived"} == set(WORDS["hivemind"].values())


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("production", {"production"}),
        ("deployed", {"production"}),
        ("ACTIVE", {"production"}),
        ("Production", {"production"}),
        ("Staging", {"staging"}),
        ("READY", {"validated", "staging"}),
        ("archived", {"retired", "rolled_back"}),
        ("DEPRECATED", {"retired", "rolled_back"}),
        ("failed", {"failed"}),
        ("none", set()),
        ("live", set()),
    ],
)
def test_a_word_finds_the_states_that_it_means(text: str, states: set[str]) -> None:
    assert states == states_of(text)


def test_a_filter_by_nobodys_word_is_refused() -> None:
    assert catalogue.states(None) is None
    with pytest.raises(ConfigError) as caught:
        catalogue.states("live")
    assert "unknown_state" == caught.value.code
